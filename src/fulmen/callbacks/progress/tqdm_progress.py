"""TQDMProgressBar: the bar of `tqdm`, on terminals and in notebooks."""

from __future__ import annotations

import builtins
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.progress.live import LiveProgressBar
from fulmen.callbacks.progress.streams import StreamsAboveBar, is_live

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["TQDMProgressBar", "Tqdm", "convert_inf"]  # noqa: F822 - `Tqdm` is made by `__getattr__`

_BARS = {"train": "_train_bar", "sanity": "_val_bar", "val": "_val_bar", "test": "_test_bar", "predict": "_predict_bar"}
_NUMBER_WIDTH = 5  # characters of a number in the bar, so that it does not jump
_COLAB_REFRESH_RATE = 20  # each update of a Colab widget travels over the network
_SHOWN_WITH_THE_FIRST_COUNT_S = 1e-9  # a positive delay keeps tqdm from drawing in its constructor


class TQDMProgressBar(LiveProgressBar):
    """Shows progress with `tqdm`: a train bar, and below it a validation bar while validation runs.

    Where the output is a file or a pipe, each epoch gives one line instead.

    Args:
        refresh_rate: Redraw after so many batches, at most ten times and at least once a second; 0 shows nothing. The
            environment variable `TQDM_MINITERS` raises it; on Colab the default becomes 20.
        process_position: First line to use, for several processes that share a terminal.
        leave: Keep the finished bar of each epoch on the screen.

    Example::

        trainer = Trainer(callbacks=[TQDMProgressBar(leave=True)])
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__(_refresh_rate_from_environment(refresh_rate), leave)
        self._process_position = process_position
        self._train_bar: Any = None
        self._val_bar: Any = None
        self._test_bar: Any = None
        self._predict_bar: Any = None
        self._streams = StreamsAboveBar(self._clear)
        self._writing = False
        self._on_screen: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the bars out: they hold the terminal."""
        bars = dict.fromkeys((*_BARS.values(), "_streams"))
        return {**self.__dict__, **bars, "_on_screen": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make what `__getstate__` left out."""
        self.__dict__.update(state)
        self._streams = StreamsAboveBar(self._clear)

    @property
    def process_position(self) -> int:
        """First line to use, counted from the present one."""
        return self._process_position

    # ---- the bars, for those who want to change them

    @property
    def train_progress_bar(self) -> Any:
        """The `tqdm` object of training.

        Raises:
            TypeError: Training has not begun.
        """
        return self._existing("train")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: Any) -> None:
        self._train_bar = bar

    @property
    def val_progress_bar(self) -> Any:
        """The `tqdm` object of validation and of the sanity check.

        Raises:
            TypeError: Validation has not begun.
        """
        return self._existing("val")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: Any) -> None:
        self._val_bar = bar

    @property
    def test_progress_bar(self) -> Any:
        """The `tqdm` object of testing.

        Raises:
            TypeError: Testing has not begun.
        """
        return self._existing("test")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: Any) -> None:
        self._test_bar = bar

    @property
    def predict_progress_bar(self) -> Any:
        """The `tqdm` object of prediction.

        Raises:
            TypeError: Prediction has not begun.
        """
        return self._existing("predict")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: Any) -> None:
        self._predict_bar = bar

    def init_sanity_tqdm(self) -> Any:
        """Make the bar of the sanity check; override to change it."""
        return self._make(self.sanity_check_description, line=0, leave=False)

    def init_train_tqdm(self) -> Any:
        """Make the bar of training; override to change it."""
        return self._make(self.train_description, line=0, leave=True)

    def init_validation_tqdm(self) -> Any:
        """Make the bar of validation, in a fit below the train bar; override to change it."""
        beside_train = self.trainer.state.fn == "fit"
        return self._make(self.validation_description, line=int(beside_train), leave=not beside_train)

    def init_test_tqdm(self) -> Any:
        """Make the bar of testing; override to change it."""
        return self._make(self.test_description, line=0, leave=True)

    def init_predict_tqdm(self) -> Any:
        """Make the bar of prediction; override to change it."""
        return self._make(self.predict_description, line=0, leave=True)

    def _make(self, description: str, *, line: int, leave: bool) -> Any:
        return _tqdm_class()(
            desc=description,
            position=2 * self.process_position + line,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=self._screen(),
            smoothing=0,
            bar_format=self.BAR_FORMAT,
            delay=_SHOWN_WITH_THE_FIRST_COUNT_S,
        )

    def _existing(self, stage: str) -> Any:
        bar = getattr(self, _BARS[stage])
        if bar is None:
            raise TypeError(
                f"The {stage} bar of `{type(self).__name__}` does not exist yet: it is made when that stage begins."
                " Read it from a hook of that stage."
            )
        return bar

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar.

        Args:
            args: What to print.
            sep: Text between the arguments.
            kwargs: As of the built-in `print`.
        """
        kwargs.pop("nolock", None)  # an argument of `tqdm.write`, which programs pass
        builtins.print(*args, sep=sep, **kwargs)  # noqa: T201 - printing is what it is for

    # ---- the verbs

    @property
    def _plain(self) -> bool:
        return not is_live(self._screen())

    def _screen(self) -> Any:
        return self._streams.original("stdout")

    def _open(self, stage: str) -> None:
        make = {
            "train": self.init_train_tqdm,
            "sanity": self.init_sanity_tqdm,
            "val": self.init_validation_tqdm,
            "test": self.init_test_tqdm,
            "predict": self.init_predict_tqdm,
        }[stage]
        if self.is_enabled and not self._plain and not self._streams.active:
            self._streams.start()
        with self._own_output():
            bar = make()
        setattr(self, _BARS[stage], bar)
        self._on_screen.append(bar)

    def _restart(self, stage: str, description: str, total: int | float, done: int) -> None:
        bar = self._existing(stage)
        with self._own_output():
            bar.frozen_s = None
            bar.set_description(description, refresh=False)
            bar.total = convert_inf(total)
            bar.reset(bar.total)
            bar.n = bar.initial = done

    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None) -> None:
        bar = self._existing(stage)
        if bar.disable:
            return
        with self._own_output():
            bar.n = done
            if metrics is not None:
                bar.set_postfix(metrics, refresh=False)
            self._streams.end_line()
            bar.refresh()

    def _freeze(self, stage: str) -> None:
        bar = self._existing(stage)
        if not bar.disable:
            bar.frozen_s = bar.format_dict["elapsed"]

    def _print_line(self, stage: str) -> None:
        bar = self._existing(stage)
        if not bar.disable:
            self._screen().write(f"{bar}\n")
            self._screen().flush()

    def _leave_behind(self, stage: str) -> None:
        self._close(stage)
        self._open(stage)

    def _close(self, stage: str) -> None:
        bar = self._existing(stage)
        with self._own_output():
            bar.close()
        self._on_screen = [other for other in self._on_screen if other is not bar]  # tqdm's `==` compares positions
        if not self._on_screen:
            self._streams.stop()

    def _close_all(self) -> None:
        with self._own_output():
            for bar in reversed(self._on_screen):
                bar.close()
        self._on_screen.clear()
        self._streams.stop()

    def _epoch_description(self, trainer: Trainer) -> str:
        return f"Epoch {trainer.current_epoch}"

    def _loader_description(self, description: str, dataloader_idx: int, num_dataloaders: int) -> str:
        return f"{description} DataLoader {dataloader_idx}"

    # ---- the screen

    @contextmanager
    def _own_output(self) -> Iterator[None]:
        """While a bar writes, `_clear` must not clear it."""
        self._writing, before = True, self._writing
        try:
            yield
        finally:
            self._writing = before

    def _clear(self) -> None:
        """Take the bars off the screen before someone else writes there."""
        if self._writing:
            return
        with self._own_output():
            for bar in reversed(self._on_screen):
                bar.clear()


def convert_inf(x: int | float | None) -> int | float | None:
    """Return `x`, or None where it is infinite or not a number, as tqdm wants an unknown total.

    Args:
        x: A number of batches.
    """
    return None if x is None or math.isinf(x) or math.isnan(x) else x


def _refresh_rate_from_environment(refresh_rate: int) -> int:
    if refresh_rate == 1 and "COLAB_GPU" in os.environ:
        refresh_rate = _COLAB_REFRESH_RATE
    if refresh_rate > 0 and "TQDM_MINITERS" in os.environ:
        refresh_rate = max(int(os.environ["TQDM_MINITERS"]), refresh_rate)
    return refresh_rate


class _Nowhere:
    """Takes what tqdm draws where nothing can be redrawn; has the encoding of the real stream."""

    def __init__(self, stream: Any) -> None:
        self.encoding = getattr(stream, "encoding", "utf-8")

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


@functools.cache
def _tqdm_class() -> type[Any]:
    """Make our kind of `tqdm` on first use, because importing `tqdm` takes a while."""
    from tqdm.auto import tqdm as auto_tqdm

    class Tqdm(auto_tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        """A `tqdm` with numbers of even width, a clock that can stop, and no control characters in files."""

        monitor_interval = 0  # no watching thread: we redraw ourselves, and worker processes are forked

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.frozen_s: float | None = None
            stream = kwargs.get("file") or sys.stderr
            kwargs["file"] = stream if is_live(stream) else _Nowhere(stream)
            super().__init__(*args, **kwargs)

        @property
        def format_dict(self) -> dict[str, Any]:
            values = dict(super().format_dict)
            if self.frozen_s is not None:
                values["elapsed"] = self.frozen_s
            return values

        @staticmethod
        def format_num(n: float | str) -> str:
            return _format_num(n, auto_tqdm.format_num)

    Tqdm.__qualname__ = "Tqdm"
    return Tqdm


def _format_num(n: float | str, shortest: Callable[[float], str]) -> str:
    """Write floats of everyday size with as many decimals as fit the width, others as tqdm does."""
    if isinstance(n, str):
        return n
    if isinstance(n, float) and (n == 0 or 1e-3 <= abs(n) < 1e3):
        decimals = _NUMBER_WIDTH - 1 - len(str(int(n)))
        return f"{n:.{decimals}f}"
    return shortest(n)


def __getattr__(name: str) -> Any:
    if name == "Tqdm":
        return _tqdm_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
