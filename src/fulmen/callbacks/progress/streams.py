"""Where a live bar may draw, and how other output gets above it instead of into it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

__all__ = ["LogStreams", "StreamsAboveBar", "is_live"]


def is_live(stream: Any) -> bool:
    """Tell whether a carriage return on this stream goes back to the start of the line, as on a terminal.

    Args:
        stream: A text stream such as `sys.stdout`.

    Returns:
        True for terminals, the console of PyCharm and the output of a notebook cell; False for files and pipes.
    """
    if type(stream).__module__.startswith("ipykernel."):
        return True
    isatty = getattr(stream, "isatty", None)
    return (isatty is not None and bool(isatty())) or "PYCHARM_HOSTED" in os.environ


class LogStreams:
    """Points log handlers that write to a replaced `sys.stdout` or `sys.stderr` to the replacement, until `restore`.

    A `logging.StreamHandler` keeps the stream it was made with, so replacing `sys.stderr` alone does not reach it.
    """

    def __init__(self) -> None:
        self._moved: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def follow(self, replaced: Mapping[TextIO, Any]) -> None:
        """Move the handlers of all loggers.

        Args:
            replaced: Old stream to new stream.
        """
        loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", ()):  # a placeholder in the logger tree has none
                if isinstance(handler, logging.StreamHandler) and handler.stream in replaced:
                    self._moved.append((handler, handler.stream))
                    handler.setStream(replaced[handler.stream])

    def restore(self) -> None:
        """Give all handlers their old streams back."""
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved.clear()


class _StreamAboveBar:
    """A text stream that clears the bar off the screen before it passes anything on."""

    def __init__(self, stream: TextIO, clear_bar: Callable[[], None]) -> None:
        self._stream = stream
        self._clear_bar = clear_bar
        self.mid_line = False

    def write(self, text: str) -> int:
        if not self.mid_line:
            self._clear_bar()
        if text:  # a text with a carriage return comes from another bar, which looks after its line itself
            self.mid_line = not text.endswith("\n") and "\r" not in text
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StreamsAboveBar:
    """Replaces `sys.stdout`, `sys.stderr` and the streams of log handlers while a bar is on the screen.

    Args:
        clear_bar: Takes the bar off the screen; the bar comes back with its next refresh.
    """

    def __init__(self, clear_bar: Callable[[], None]) -> None:
        self._clear_bar = clear_bar
        self._logs = LogStreams()
        self._replaced: dict[str, tuple[TextIO, _StreamAboveBar]] = {}

    @property
    def active(self) -> bool:
        """Whether the streams are replaced now."""
        return bool(self._replaced)

    def original(self, name: str) -> Any:
        """Return `sys.stdout` or `sys.stderr` as it is without us.

        Args:
            name: "stdout" or "stderr".
        """
        return self._replaced[name][0] if name in self._replaced else getattr(sys, name)

    def end_line(self) -> None:
        """Begin a new line where someone printed half a line, lest the bar overwrite it."""
        for stream, ours in self._replaced.values():
            if ours.mid_line:
                ours.mid_line = False
                stream.write("\n")
                stream.flush()

    def start(self) -> None:
        """Replace the streams that go to the screen."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_live(stream):
                self._replaced[name] = (stream, _StreamAboveBar(stream, self._clear_bar))
                setattr(sys, name, self._replaced[name][1])
        self._logs.follow(dict(self._replaced.values()))

    def stop(self) -> None:
        """Put everything back; a stream that someone else replaced meanwhile stays theirs."""
        self._logs.restore()
        for name, (stream, ours) in self._replaced.items():
            if getattr(sys, name) is ours:
                setattr(sys, name, stream)
        self._replaced.clear()
