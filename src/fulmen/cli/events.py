"""`fulmen events`: who acts when in a script, in place of training."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.cli.text import columns, paragraph
from fulmen.utilities.command_line import CommandParser, refuse

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["command", "make_parser"]

_PROG = "fulmen events"
_USAGE = """\
fulmen events [--all] [--go-on] [--json] SCRIPT [ARGUMENT ...]
       fulmen events [--all] [--go-on] [--json] -m MODULE [ARGUMENT ...]"""
_DESCRIPTION = """\
Run a script up to where its Trainer would begin to fit, validate, test or predict, and print in place
of that who acts at each event, in order: module, datamodule, callbacks, strategy. The script stays as
it is; nothing is trained, no data are loaded, no other processes are started.

Options of this command stand before SCRIPT, all that follows is passed to it."""
_EPILOG = """\
examples:
  fulmen events train.py --lr 0.1
  fulmen events --go-on train.py         # also the calls after the first
  fulmen events -m fulmen.compat train.py    # a script that imports lightning"""
_METHODS = ("fit", "validate", "test", "predict")
_STAGE = {"fit": ("train", "validation", "sanity"), "validate": ("validation",), "test": ("test",),
          "predict": ("predict",)}  # fmt: skip
_ONLY_FIT = ("fit", "before", "after", "save")
_LABEL = re.compile(r"\[(\w+)\](\w+)")
_KINDS = {"LightningModule": "module", "LightningDataModule": "datamodule", "Strategy": "strategy"}


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen events`.

    Args:
        arguments: What follows the command's name.
    """
    parser = make_parser()
    words = list(arguments)
    split = next((number for number, word in enumerate(words) if not word.startswith("-")), len(words))
    split = words.index("-m") + 2 if "-m" in words[:split] else split
    options = parser.parse_args(words[:split])
    program = words[split:]
    if options.module is None and not program:
        parser.error("which script? Give its path, or a module by -m.")
    if options.module is None and not Path(program[0]).is_file():
        refuse(_PROG, f"there is no file {program[0]!r}", code=2)
    _run(options, program)


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG, _USAGE)
    parser.add_argument("--all", action="store_true", help="also the events at which nobody acts")
    parser.add_argument("--go-on", action="store_true", help="go on with the script after its first call")
    parser.add_argument("--json", action="store_true", help="one JSON object per call; the script prints to stderr")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as `python -m` does")
    return parser


def _run(options: Any, program: list[str]) -> None:
    output = sys.stdout
    shown: list[str] = []

    def show(trainer: Trainer, method: str) -> None:
        shown.append(method)
        output.write(_as_json(trainer, method) if options.json else _as_text(trainer, method, show_all=options.all))
        output.flush()
        if not options.go_on:
            raise SystemExit(0)

    quiet = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with _replaced_methods(show), quiet:
            _run_program(options.module, program)
    except SystemExit as end:
        if not shown or end.code not in (None, 0):
            raise
    if not shown:
        refuse(
            _PROG, "the script has ended, and no Trainer of fulmen was asked to fit, validate, test or predict."
            " A script that imports lightning: `fulmen events -m fulmen.compat SCRIPT`. A loop of one's own with Fabric"
            " has no table of events."
        )  # fmt: skip


def _run_program(module: str | None, program: list[str]) -> None:
    if module is not None:
        sys.path.insert(0, os.getcwd())
        sys.argv[:] = [module, *program]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    sys.argv[:] = program
    sys.path.insert(0, str(Path(program[0]).resolve().parent))  # as Python does for a script
    runpy.run_path(program[0], run_name="__main__")


# ---- in place of training


@contextlib.contextmanager
def _replaced_methods(show: Callable[[Trainer, str], None]) -> Iterator[None]:
    """Context in which the methods that train or evaluate show a table instead."""
    from fulmen.trainer.trainer import Trainer
    from fulmen.tuner.tuner import Tuner

    replaced: list[tuple[type, str, Any]] = []
    arguments, path, argv = list(sys.argv), list(sys.path), sys.argv
    try:
        methods: list[tuple[type, tuple[str, ...]]] = [(Trainer, _METHODS), (Tuner, ("lr_find", "scale_batch_size"))]
        for cls, names in methods:
            for name in names:
                original = getattr(cls, name)
                replaced.append((cls, name, original))
                setattr(cls, name, _shows(original, name, show))
        yield
    finally:
        for cls, name, original in replaced:
            setattr(cls, name, original)
        argv[:], sys.path[:] = arguments, path


def _shows(original: Callable[..., Any], name: str, show: Callable[[Trainer, str], None]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        # in the Tuner's place this is a method of its own
        trainer: Trainer = self if name in _METHODS else self._trainer
        verb = name if name in _METHODS else str(given.get("method", "fit"))
        _attach(trainer, verb, given)
        show(trainer, verb)
        return [] if name in ("validate", "test", "predict") else None

    return method


def _attach(trainer: Trainer, method: str, given: dict[str, Any]) -> None:
    """Let the trainer know module, data and the module's callbacks, as it does when a run begins."""
    from fulmen.core.datamodule import LightningDataModule
    from fulmen.core.states import TrainerFn
    from fulmen.trainer.defaults import add_module_callbacks
    from fulmen.utilities.compile import from_compiled, is_compiled

    model: Any = given.get("model") or trainer.lightning_module
    if model is None:
        raise TypeError("the script calls a method of its Trainer without a model, and none was attached before")
    module: Any = from_compiled(model) if is_compiled(model) else model
    loaders = (given.get(name) for name in ("datamodule", "train_dataloaders", "dataloaders"))
    trainer.state.fn = TrainerFn(method)
    trainer.attach(module)
    trainer.sources.attach(datamodule=next((each for each in loaders if isinstance(each, LightningDataModule)), None))
    returned = module.configure_callbacks()
    own = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    trainer.callbacks[:] = add_module_callbacks(trainer.callbacks, own)
    trainer.events.build()


# ---- the table


def _actors(trainer: Trainer, method: str) -> dict[str, list[str]]:
    from fulmen.core.events import EVENTS

    return {
        event.name: [_readable(label) for label, _ in trainer.events.receivers(event)]
        for event in EVENTS
        if _belongs_to(event.name, method)
    }


def _belongs_to(event: str, method: str) -> bool:
    """Whether an event can happen in a method."""
    if not event.startswith("on_"):
        return True
    stage = event.removeprefix("on_").partition("_")[0]
    if stage in ("exception", "load") or stage in _STAGE[method]:
        return True
    return method == "fit" and stage in _ONLY_FIT


def _readable(label: str) -> str:
    """`[LightningModule]Net` is `Net (module)`."""
    found = _LABEL.match(label)
    if found is None:
        return label
    kind = _KINDS.get(found[1])
    return found[2] if kind is None else f"{found[2]} ({kind})"


def _as_text(trainer: Trainer, method: str, *, show_all: bool) -> str:
    actors = _actors(trainer, method)
    rows = [(name, " -> ".join(each) or "-") for name, each in actors.items() if each or show_all]
    nobody = [name for name, each in actors.items() if not each]
    facts = [(name, ", ".join(each) or "-") for name, each in _parts(trainer).items()]
    text = f"Trainer.{method}\n{columns(facts)}\n\n{columns([('event', 'who acts, in this order'), *rows])}\n"
    if nobody and not show_all:
        text += f"\n  nobody acts at:\n{paragraph(', '.join(nobody), 4)}\n"
    return f"{text}\n"


def _as_json(trainer: Trainer, method: str) -> str:
    return json.dumps({"method": method, **_parts(trainer), "events": _actors(trainer, method)}) + "\n"


def _parts(trainer: Trainer) -> dict[str, list[str]]:
    one = {"module": trainer.lightning_module, "datamodule": trainer.datamodule, "strategy": trainer.strategy}
    return {
        **{name: [] if each is None else [type(each).__name__] for name, each in one.items()},
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "loggers": [type(logger).__name__ for logger in trainer.loggers],
    }
