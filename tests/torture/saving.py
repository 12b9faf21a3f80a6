"""Kill a run while it saves: the newest checkpoint can always be loaded, and the next run leaves nothing behind."""

from __future__ import annotations

import random
import shutil
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.plugins import AsyncCheckpointIO
from tests.torture.compare import read_record
from tests.torture.processes import end_group, run_in_fork, start_fork, wait_for
from tests.torture.program import Record

__all__ = ["Saves", "kill_while_saving"]

_NUM_WEIGHTS = 5_000_000  # 20 MB
_LONGEST_WAIT_S = 0.4
_MOST_UNWRITTEN = 3  # asynchronous saves that may be lost: two that wait, and one that is handed over
_KILLS_OF_A_FOLDER = 10


@dataclass
class Saves:
    """What came of killing runs while they saved.

    Attributes:
        mode: "sync" or "async".
        kills: How many runs were killed.
        in_write: How many of them had a file half written.
        loaded: How many of the next runs went on from the newest checkpoint.
        superfluous: Old checkpoints that a killed run could not delete any more.
        problems: What went wrong.
        seconds: How long it took.
    """

    mode: str
    kills: int = 0
    in_write: int = 0
    loaded: int = 0
    superfluous: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Counted(LightningModule):
    """Every weight is the number of optimizer steps, so that a mixture of two states shows."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(_NUM_WEIGHTS))
        self.record = record

    def on_train_start(self) -> None:
        self.record.write(started=self.trainer.global_step)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.record.write(saved=self.trainer.global_step)  # what the step before has handed over
        return -self.weights.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(100_000))  # type: ignore[arg-type]  # has a length and items


class StopSoon(Callback):
    """Ends a run after two more steps."""

    def __init__(self) -> None:
        self.left = 2

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.left -= 1
        trainer.should_stop |= self.left == 0


def _train(folder: Path, mode: str, save_last: Any, *, ends: bool) -> None:
    record = Record(folder / "record.jsonl")
    record.write(begin=mode)
    saver = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_last=save_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            max_epochs=-1,
            logger=False,
            callbacks=[*([StopSoon()] if ends else []), saver],
            plugins=[AsyncCheckpointIO()] if mode == "async" else None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Counted(record), ckpt_path="auto")
    record.close()


def kill_while_saving(mode: str, kills: int, seed: int, folder: Path, tell: Callable[[str], None]) -> Saves:
    """Kill runs at random instants, and look each time what is left and whether the next run goes on.

    Args:
        mode: "sync" or "async".
        kills: How many times.
        seed: For the instants.
        folder: Empty folder for the files.
        tell: Called with each problem.
    """
    rng, start, result = random.Random(f"{mode} {seed}"), time.monotonic(), Saves(mode)
    for number in range(kills):
        chain = number // _KILLS_OF_A_FOLDER
        place = folder / f"{mode}{chain}"
        save_last = ("link", True)[chain % 2]
        if number % _KILLS_OF_A_FOLDER == 0:
            (place / "checkpoints").mkdir(parents=True)
        known = len(result.problems)
        _kill_once(result, place, mode, save_last, rng)
        for problem in result.problems[known:]:
            tell(f"{mode}, kill {number + 1}, save_last={save_last!r}: {problem}")
        if number % _KILLS_OF_A_FOLDER == _KILLS_OF_A_FOLDER - 1 or len(result.problems) > known:
            result.superfluous += max(len(_checkpoints(place)) - 2, 0)
            shutil.rmtree(place)
            (place / "checkpoints").mkdir(parents=True)
    result.seconds = time.monotonic() - start
    return result


def _kill_once(result: Saves, place: Path, mode: str, save_last: Any, rng: random.Random) -> None:
    behind = len(read_record(place))
    output = place / "output.txt"
    pid = start_fork(partial(_train, place, mode, save_last, ends=False), output)
    try:
        _wait_for_start(place, behind)
    except TimeoutError:
        result.problems.append(f"the run does not start: ...{output.read_text()[-1500:]}")
        return
    finally:
        ended = wait_for(pid, kill_after_s=rng.uniform(0, _LONGEST_WAIT_S))
        end_group(pid)
    result.kills += 1
    if ended.code != -9:
        result.problems.append(f"the run ended by itself: ...{output.read_text()[-1500:]}")
        return
    result.in_write += bool(_stray(place))
    saved = max((entry["saved"] for entry in read_record(place)[behind:] if "saved" in entry), default=0)
    steps = _check_files(result, place)
    promised = saved - (_MOST_UNWRITTEN if mode == "async" else 0)
    if max(steps, default=0) < promised:
        result.problems.append(
            f"step {promised} was saved, but the newest checkpoint is of step {max(steps, default=0)}"
        )
    _check_next_run(result, place, mode, save_last, max(steps, default=0))


def _wait_for_start(place: Path, behind: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any("started" in entry for entry in read_record(place)[behind:]):
            return
        time.sleep(0.002)
    raise TimeoutError


def _check_files(result: Saves, place: Path) -> list[int]:
    """Return the steps of all checkpoints in a folder; each must be whole and of one moment."""
    steps = []
    for path in _checkpoints(place):
        step = _step_of(path)
        if isinstance(step, str):
            result.problems.append(f"{path.name}: {step}")
        else:
            steps.append(step)
    return steps


def _step_of(path: Path) -> int | str:
    """Return the step of a checkpoint, or what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"{damaged} is damaged"
        checkpoint = torch.load(path, weights_only=True)
    except Exception as error:
        return f"cannot be read: {error!r}"
    step: int = checkpoint["global_step"]
    weights = checkpoint["state_dict"]["weights"]
    if not bool((weights == step).all()):
        return f"of step {step}, but its weights are those of {Counter(weights[::1000].tolist()).most_common(3)}"
    return step


def _check_next_run(result: Saves, place: Path, mode: str, save_last: Any, newest: int) -> None:
    behind = len(read_record(place))
    ended = run_in_fork(partial(_train, place, mode, save_last, ends=True), place / "output.txt")
    started = [entry["started"] for entry in read_record(place)[behind:] if "started" in entry]
    if ended.code != 0:
        result.problems.append(f"the next run failed: ...{(place / 'output.txt').read_text()[-1500:]}")
    elif started != [newest]:
        result.problems.append(f"the newest checkpoint is of step {newest}, but the next run began at {started}")
    else:
        result.loaded += 1
    stray = _stray(place)
    if stray:
        result.problems.append(f"the next run leaves {len(stray)} files behind, e.g. {stray[0].name}")


def _checkpoints(place: Path) -> list[Path]:
    return sorted((place / "checkpoints").glob("[!.]*.ckpt"))


def _stray(place: Path) -> list[Path]:
    return sorted(set((place / "checkpoints").iterdir()) - set(_checkpoints(place)))
