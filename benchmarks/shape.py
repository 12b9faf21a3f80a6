"""What can be counted exactly: frames above the user's code, Python calls of a step, waits for the GPU."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import torch

from benchmarks.cases import quiet, with_defaults
from benchmarks.frameworks import Framework
from benchmarks.models import make_callback, make_model
from benchmarks.timing import Batches, Setup

__all__ = ["SHAPES", "Shape", "measure"]

WARMUP = 10


@dataclass(frozen=True)
class Shape:
    """One row of the report: a count, `None` where it cannot be taken."""

    key: str
    title: str
    count: Callable[[Setup, Framework], float | None]


def measure(setup: Setup, framework: Framework) -> dict[str, float | None]:
    """Return all counts by their keys."""
    return {shape.key: shape.count(setup, framework) for shape in SHAPES}


# ---- frames
class _Reached(Exception):
    """The user's code is reached."""


def _raise(*_: Any) -> None:
    raise _Reached


def frames(setup: Setup, framework: Framework, *, method: str, hook: str, in_callback: bool = False) -> int:
    """Count the package's frames in the traceback of an error in the user's code."""
    model, callback = make_model(framework), make_callback(framework)
    owner = callback if in_callback else model
    owner.__class__ = type("Raising", (type(owner),), {hook: _raise})
    trainer = framework.trainer(**quiet(setup.device, callbacks=[callback]))
    try:
        getattr(trainer, method)(model, setup.loader(2))
    except _Reached as reached:
        return _count(reached.__traceback__, framework.folder)
    raise AssertionError(f"`{hook}` was not called")


def _count(traceback: TracebackType | None, folder: str) -> int:
    count = 0
    while traceback is not None:
        count += traceback.tb_frame.f_code.co_filename.startswith(folder)
        traceback = traceback.tb_next
    return count


# ---- calls
def calls(
    setup: Setup, framework: Framework, *, method: str = "fit", num_logged: int = 0, defaults: bool = False
) -> float:
    """Count the calls of the package's Python functions per batch."""
    count = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(framework.folder)

    arguments = with_defaults(setup.device, framework, None) if defaults else quiet(setup.device)
    run = partial(getattr(framework.trainer(**arguments), method), make_model(framework, num_logged=num_logged))
    tensors = setup.tensors
    run(Batches(tensors, WARMUP, lambda: sys.setprofile(profile), lambda: sys.setprofile(None)))
    return round(count / (len(tensors) - 1 - WARMUP), 1)


# ---- waits
def syncs(setup: Setup, framework: Framework, *, num_logged: int = 0) -> float | None:
    """Count how often a step waits for the GPU; `None` without one."""
    if setup.device != "cuda":
        return None
    switch: Any = torch.cuda.set_sync_debug_mode
    tensors = setup.tensors
    batches = Batches(tensors, WARMUP, partial(switch, "warn"), partial(switch, "default"))
    trainer = framework.trainer(**quiet(setup.device))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_model(framework, num_logged=num_logged), batches)
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return round(len(found) / (len(tensors) - 1 - WARMUP), 2)


SHAPES: tuple[Shape, ...] = (
    Shape("frames_training_step", "frames above training_step", partial(frames, method="fit", hook="training_step")),
    Shape("frames_validation_step", "frames above validation_step",
          partial(frames, method="validate", hook="validation_step")),
    Shape("frames_predict_step", "frames above predict_step", partial(frames, method="predict", hook="predict_step")),
    Shape("frames_callback", "frames above a callback's on_train_batch_end",
          partial(frames, method="fit", hook="on_train_batch_end", in_callback=True)),
    Shape("calls_bare", "Python calls of a step, bare", calls),
    Shape("calls_log_1", "Python calls of a step, 1 logged scalar", partial(calls, num_logged=1)),
    Shape("calls_defaults", "Python calls of a step, defaults", partial(calls, defaults=True)),
    Shape("calls_validate", "Python calls of a validation batch", partial(calls, method="validate")),
    Shape("calls_predict", "Python calls of a prediction batch", partial(calls, method="predict")),
    Shape("syncs_bare", "waits for the GPU in a step, bare", syncs),
    Shape("syncs_log_1", "waits for the GPU in a step, 1 logged scalar", partial(syncs, num_logged=1)),
)  # fmt: skip
