"""Values that are not there: what stands in for them, and which line of the user's program asked."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor

import fulmen
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["PlanError", "is_refusal", "located", "reader", "users_lines"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.abspath(fulmen.__file__)) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_INSTALLED = tuple(
    os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib", "scripts")
)
_NEEDS_VALUES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
_REFUSALS = (RuntimeError, ValueError, TypeError, ImportError, MisconfigurationException)
_NO_ARRAYS = ".numpy() is not supported for tensor subclasses"


class PlanError(RuntimeError):
    """A module or step that cannot be traced, as the program needs values that only exist in a real run."""


def reader(notes: list[str], package: str) -> Callable[[Tensor], Any]:
    """Return what stands in for the value of an imagined tensor.

    Args:
        notes: Takes the lines that read one.
        package: As for `located`.
    """
    is_users = _is_users_of(package)

    def read(tensor: Tensor) -> Any:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
            frame = frame.f_back
        is_ours = frame is None or frame.f_code.co_filename.startswith(_OWN)
        if not tensor.dtype.is_floating_point:
            if is_ours:
                return True if tensor.dtype == torch.bool else 1
            raise fake_tensor.DataDependentOutputException(torch.ops.aten._local_scalar_dense.default)
        if not is_ours:
            of_user = frame
            while of_user is not None and not is_users(of_user.f_code.co_filename):
                of_user = of_user.f_back
            note = f"{_place(of_user or frame)} reads the value of a tensor; 1.0 is taken."
            if note not in notes:
                notes.append(note)
        return 1.0

    return read


@contextmanager
def located(package: str) -> Iterator[None]:
    """Say which line of the user's program needs a value.

    Args:
        package: The package of the user's module, whose lines are the user's wherever they are installed.

    Raises:
        PlanError: A line needs one.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, _NEEDS_VALUES) and _NO_ARRAYS not in str(error):
            raise
        lines = users_lines(error, package)
        inside = [_place(*each) for each in _frames(error) if not _name(each).startswith((_TORCH, _OWN, "<"))]
        place = lines[-1] if lines else inside[-1] if inside else "The step"
        within = f" (in {inside[-1]})" if inside and inside[-1] != place else ""
        raise PlanError(
            f"{place} needs the value of a tensor{within}, but a plan is made with shapes only: what a program does"
            " with numbers, masks or indices that are computed cannot be known. Use operations whose shapes do not"
            " depend on values, e.g. `torch.where` in place of indexing by a mask; or put the line behind a setting of"
            " the module, and plan with it switched off."
        ) from error


def users_lines(error: BaseException, package: str) -> list[str]:
    """Return the lines of the user's program that an error came through, the outermost first.

    Args:
        error: The error.
        package: As for `located`.
    """
    is_users = _is_users_of(package)
    return [_place(*each) for each in _frames(error) if is_users(_name(each))]


def is_refusal(error: BaseException) -> bool:
    """Tell whether this package raised an error on purpose: for what it was given.

    Args:
        error: An error that came through no line of the user's.
    """
    frames = list(_frames(error))
    return isinstance(error, _REFUSALS) and bool(frames) and _name(frames[-1]).startswith(_OWN)


def _is_users_of(package: str) -> Callable[[str], bool]:
    """Return what tells whether a file is the user's, and not one of Python, of torch or of another library."""
    root = getattr(sys.modules.get(package), "__file__", None) or "<none>"
    own = os.path.dirname(os.path.abspath(root)) + os.sep if os.path.basename(root) == "__init__.py" else root

    def is_users(name: str) -> bool:
        is_installed = name.startswith(_INSTALLED) and not name.startswith(own)
        return not (is_installed or name.startswith(("<", _OWN, _TORCH)))

    return is_users


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _name(frame_and_line: tuple[FrameType, int]) -> str:
    return frame_and_line[0].f_code.co_filename


def _place(frame: FrameType | None, line: int | None = None) -> str:
    if frame is None:
        return "The step"
    line = line or frame.f_lineno
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}: `{source}`"
