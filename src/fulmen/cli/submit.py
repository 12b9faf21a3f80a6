"""`fulmen submit`: a script as a job of Slurm that is requeued until it is done."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fulmen.utilities.command_line import CommandParser, refuse, say

__all__ = ["command", "job_file", "make_parser"]

_PROG = "fulmen submit"
_USAGE = "fulmen submit [--slurm] [OPTION ...] SCRIPT [ARGUMENT ...]"
_DESCRIPTION = """\
Write a job file for a script, and send it to Slurm. One task runs per device; before its time is up,
Slurm signals the job, the Trainer saves a checkpoint and asks for a new place in the queue, and the
requeued job goes on from that checkpoint as if it had not been interrupted.

`Trainer()` takes `devices` and `num_nodes` from the job if the script does not pass them.
Options of this command stand before SCRIPT, all that follows is passed to it."""
_EPILOG = """\
examples:
  fulmen submit --nodes 2 --gpus 4 --time 8h --partition gpu train.py --lr 0.1
  fulmen submit --gpus a100:4 --setup 'module load cuda' --env A=1 train.py
  fulmen submit --gpus 1 --array 0-9 --sbatch --exclusive --dry-run train.py

exit code:
  0 submitted (or written, or printed), 1 Slurm refused or is absent,
  2 wrong arguments"""
_MARK = "# Written by `fulmen submit`."
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d{1,2}){0,2})")
_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?")
_NAME = re.compile(r"[A-Za-z_]\w*")
_EARLY_S = 60  # Slurm looks once a minute, and sends the signal up to so long before
_SBATCH_TIMEOUT_S = 60
_OWN_DIRECTIVES = {
    "--job-name": "--name", "--nodes": "--nodes", "--ntasks-per-node": "--gpus or --tasks", "--time": "--time",
    "--gpus-per-node": "--gpus", "--partition": "--partition", "--signal": "--signal-before",
    "--requeue": "--no-requeue",
    "--output": "--output", "--array": "--array", "--cpus-per-task": "--cpus", "--mem": "--mem",
    "--account": "--account", "--qos": "--qos", "--chdir": "--chdir", "--open-mode": "--output",
}  # fmt: skip


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen submit`.

    Args:
        arguments: What follows the command's name.
    """
    parser = make_parser()
    options, rest = _split(parser, list(arguments))
    if options.script is None:
        parser.error("which script? Give its path after the options.")
    _check(parser, options)
    text = job_file(options, rest)
    if options.dry_run:
        sys.stdout.write(text)
        return
    path = Path(options.file or f"{options.name}.sbatch")
    if path.exists() and not options.overwrite and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        refuse(_PROG, f"`{path}` exists and was not written by this command. Choose another by --file, or --overwrite.")
    output = Path(options.chdir or ".") / Path(options.output).parent
    output.mkdir(parents=True, exist_ok=True)  # Slurm makes no folders, and a job without output fails
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"wrote {path}")
    if not options.no_submit:
        _submit(path)


def job_file(options: Any, script_arguments: Sequence[str]) -> str:
    """Return the text of a job file.

    Args:
        options: The options of the command.
        script_arguments: What the script gets.
    """
    directives = [f"#SBATCH {line}" for line in _directives(options)]
    environment = [f"export {name}={shlex.quote(value)}" for name, value in _environment(options)]
    words = [options.python, *(["-m"] if options.module else []), options.script, *script_arguments]
    return "\n".join(
        [
            "#!/bin/bash",
            f"{_MARK} Send it again with: sbatch FILE",
            *directives,
            "",
            *environment,
            *options.setup,
            f"srun {shlex.join(words)}",
            "",
        ]
    )


# ---- options


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG, _USAGE)
    parser.add_argument("script", metavar="SCRIPT", nargs="?", help="the script; all that follows is passed to it")
    parser.add_argument(
        "--slurm", action="store_true", help="the cluster runs Slurm: so far the only kind, and default"
    )
    machines = parser.add_argument_group("machines")
    machines.add_argument("--nodes", type=int, default=1, metavar="N", help="number of machines; 1 by default")
    machines.add_argument("--gpus", metavar="[TYPE:]N", help="GPUs of each machine, one task for each, e.g. 4, a100:4")
    machines.add_argument(
        "--tasks", type=int, metavar="N", help="processes on each machine, without GPUs; 1 by default"
    )
    machines.add_argument("--cpus", type=int, metavar="N", help="CPU cores of each process, for data loader workers")
    machines.add_argument("--mem", help="memory of each machine, e.g. 64G")
    queue = parser.add_argument_group("queue")
    queue.add_argument("--time", help="time limit: 8:00:00, 2-12:00:00, or 90m, 8h, 2d12h")
    queue.add_argument("--partition", help="which part of the cluster")
    queue.add_argument("--account", help="who pays")
    queue.add_argument("--qos", help="quality of service")
    queue.add_argument("--array", help="several jobs with a number each, e.g. 0-9%%4; see SLURM_ARRAY_TASK_ID")
    queue.add_argument("--sbatch", action="append", default=[], metavar="LINE",
                       help="one more line for `#SBATCH`, e.g. --exclusive; may be repeated")  # fmt: skip
    queue.add_argument("--signal-before", type=int, default=90, metavar="S",
                       help="seconds before the time limit at which a checkpoint is saved; 90 by default")  # fmt: skip
    queue.add_argument("--no-requeue", action="store_true", help="end at the time limit, without signal and requeue")
    job = parser.add_argument_group("job")
    job.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module, as of `python -m`")
    job.add_argument("--name", help="name of the job; that of the script by default")
    job.add_argument(
        "--output", default="slurm/%x-%j.out", help="file for what it prints; slurm/%%x-%%j.out by default"
    )
    job.add_argument("--chdir", help="folder in which it runs; this one by default")
    job.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable; may be repeated")
    job.add_argument("--setup", action="append", default=[], metavar="COMMAND",
                     help="shell command before the script, e.g. 'module load cuda'; may be repeated")  # fmt: skip
    job.add_argument("--python", default=sys.executable, help="the Python that runs it; this one by default")
    what = parser.add_argument_group("what to do")
    what.add_argument("--file", help="the job file; NAME.sbatch by default")
    what.add_argument(
        "--overwrite", action="store_true", help="replace that file even if this command did not write it"
    )
    what.add_argument("--dry-run", action="store_true", help="print the job file; write and submit nothing")
    what.add_argument("--no-submit", action="store_true", help="write the job file, and do not submit it")
    return parser


def _split(parser: CommandParser, words: list[str]) -> tuple[Any, list[str]]:
    """Parse up to the script: what follows it is not ours, even if we have an option of that name."""
    takes_value = {text for action in parser._actions if action.nargs is None for text in action.option_strings}
    number = 0
    while number < len(words) and words[number].startswith("-"):
        # `--sbatch --exclusive`: argparse would take the value for an option
        if words[number] == "--sbatch" and number + 1 < len(words):
            words[number : number + 2] = [f"--sbatch={words[number + 1]}"]
        number += 2 if words[number] in takes_value else 1
    return parser.parse_args(words[: number + 1]), words[number + 1 :]


def _check(parser: CommandParser, options: Any) -> None:
    for option in ("nodes", "tasks", "cpus"):
        value = getattr(options, option)
        if value is not None and value < 1:
            parser.error(f"--{option}={value}: it is 1 or more")
    if options.gpus is not None and not re.fullmatch(r"(?:[\w.-]+:)?[1-9]\d*", options.gpus):
        parser.error(f"--gpus={options.gpus}: write a number, or a type and a number: 4, a100:4")
    if options.gpus is not None and options.tasks is not None:
        parser.error("--gpus and --tasks exclude each other: each GPU has one task. Leave --tasks out.")
    if not options.module and not (Path(options.chdir or ".") / options.script).is_file():
        parser.error(f"the script {options.script!r} does not exist in {options.chdir or 'this folder'}")
    options.name = options.name or Path(options.script).stem
    if options.name in ("bash", "sh", "zsh", "interactive"):
        parser.error(f"--name={options.name}: jobs of that name are taken for a shell of a person. Choose another.")
    _check_lines(parser, options)
    _check_time(parser, options)


def _check_lines(parser: CommandParser, options: Any) -> None:
    for pair in options.env:
        if not _NAME.fullmatch(pair.partition("=")[0]) or "=" not in pair:
            parser.error(f"--env={pair}: write NAME=VALUE")
    for line in options.sbatch:
        own = _OWN_DIRECTIVES.get(re.split(r"[= ]", line, maxsplit=1)[0])
        if own is not None:
            parser.error(f"--sbatch={line}: this command has an option for it: {own}")
        if not line.startswith("-") or "\n" in line:
            parser.error(f"--sbatch={line}: write an option of sbatch, e.g. --exclusive")


def _check_time(parser: CommandParser, options: Any) -> None:
    if options.time is None:
        return
    options.time, seconds = _time(parser, options.time)
    if not options.no_requeue and seconds <= options.signal_before + _EARLY_S:
        parser.error(
            f"--time={options.time}: --signal-before={options.signal_before} and up to {_EARLY_S} s by which Slurm is"
            " early leave no time to train. Raise --time, or add --no-requeue."
        )


def _time(parser: CommandParser, text: str) -> tuple[str, int]:
    """Return a time limit as Slurm writes it, and in seconds."""
    units = _UNITS.fullmatch(text)
    found = _TIME.fullmatch(text)
    if units is not None and text:
        days, hours, minutes = (int(part or 0) for part in units.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60
    elif found is not None:
        parts = [int(part) for part in found["rest"].split(":")]
        if found["days"] is not None:  # D-HH[:MM[:SS]]
            hours, minutes, rest = [*parts, 0, 0][:3]
        elif len(parts) == 1:
            hours, minutes, rest = 0, parts[0], 0
        else:  # MM:SS or HH:MM:SS
            hours, minutes, rest = [0, *parts][-3:]
        seconds = ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + rest
    else:
        parser.error(f"--time={text}: write it as 8:00:00, 2-12:00:00, 90m, 8h or 2d12h")
    days, rest = divmod(seconds, 24 * 3600)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return (f"{days}-{clock}" if days else clock), seconds


# ---- the file


def _num_tasks(options: Any) -> int:
    return int(options.gpus.rpartition(":")[2]) if options.gpus else options.tasks or 1


def _directives(options: Any) -> Iterator[str]:
    yield f"--job-name={options.name}"
    yield f"--nodes={options.nodes}"
    yield f"--ntasks-per-node={_num_tasks(options)}"
    named = {
        "gpus-per-node": options.gpus, "cpus-per-task": options.cpus, "mem": options.mem, "time": options.time,
        "partition": options.partition, "account": options.account, "qos": options.qos, "array": options.array,
    }  # fmt: skip
    yield from (f"--{name}={value}" for name, value in named.items() if value is not None)
    yield f"--chdir={Path(options.chdir or '.').resolve()}"
    yield f"--output={options.output.replace('%j', '%A_%a') if options.array else options.output}"
    if options.no_requeue:
        yield "--no-requeue"
    else:
        yield f"--signal=SIGUSR1@{options.signal_before}"
        yield "--requeue"
        yield "--open-mode=append"  # a requeued job goes on in the same file
    yield from options.sbatch


def _environment(options: Any) -> Iterator[tuple[str, str]]:
    yield "PYTHONUNBUFFERED", "1"
    yield "PYTHONFAULTHANDLER", "1"
    yield "PL_TRAINER_DEVICES", str(_num_tasks(options))
    yield "PL_TRAINER_NUM_NODES", str(options.nodes)
    if not options.gpus:
        yield "PL_TRAINER_ACCELERATOR", "cpu"
    if options.cpus is not None:
        yield "SRUN_CPUS_PER_TASK", str(options.cpus)  # since 22.05 srun does not take it from the job
    for pair in options.env:
        name, _, value = pair.partition("=")
        yield name, value


def _submit(path: Path) -> None:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", os.fspath(path)], capture_output=True, text=True, check=False,
            timeout=_SBATCH_TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError:
        refuse(_PROG, f"there is no program `sbatch` here. On a machine of the cluster: sbatch {path}")
    except subprocess.TimeoutExpired:
        refuse(_PROG, f"sbatch did not answer within {_SBATCH_TIMEOUT_S} s. Try again: sbatch {path}")
    if done.returncode:
        refuse(_PROG, f"sbatch did not take {path}: {(done.stderr or done.stdout).strip()}")
    job = done.stdout.strip().partition(";")[0]
    say(f"submitted job {job}; its state: squeue -j {job}; to end it: scancel {job}")
