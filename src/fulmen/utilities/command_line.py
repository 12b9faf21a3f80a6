"""What the commands on the shell share: a parser that suggests the nearest word, and one way to end with a message."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["CommandParser", "nearest", "one_of", "refuse", "say"]

_NOBODY_READS = 141  # as of a program that SIGPIPE ended


class CommandParser(argparse.ArgumentParser):
    """A parser of one command: options in full, and for a misspelt one the nearest that there is.

    Args:
        prog: How the command is called.
        description: What it does, in paragraphs; indented lines stay as they are.
        epilog: Examples, below the options; likewise.
        usage: The usage line, where the one made of the options is too long.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, usage=usage, allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )  # fmt: skip

    def parse_args(  # type: ignore[override]  # one signature, in the place of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse; what is not known ends the program with a message that names the nearest option."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [text for action in self._actions for text in action.option_strings]
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            name = wrong.partition("=")[0]
            what = "option" if wrong.startswith("-") else "argument"
            self.error(f"there is no {what} `{name}`.{nearest(name, known)}" if what == "option" else
                       f"the argument `{wrong}` is one too many.")  # fmt: skip
        return options

    def error(self, message: str) -> NoReturn:
        """End the program with a message on wrong arguments, exit code 2."""
        self.exit(
            2, f"{self.prog}: error: {message}\n{self.format_usage()}`{self.prog} --help` explains the options.\n"
        )


class _HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width, and leaves those with indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if "\n  " in f"\n{part}" else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.strip().split("\n\n")
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests what was meant, with a space before it; empty if nothing is near.

    Args:
        word: What was written.
        known: What there is.
    """
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{found[0]}`?" if found else ""


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a `type=` of an option with few values; a wrong one ends in a message with all of them, nearest first.

    It has them as its attribute `choices`, for shells that complete them.

    Args:
        choices: The values.
    """

    def check(text: str) -> str:
        if text in choices:
            return text
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}.{nearest(text, choices)}")

    check.choices = choices  # type: ignore[attr-defined]  # of a function
    return check


def say(text: str) -> None:
    """Write a line to the standard output; end the program quietly if nobody reads it, as with `| head`."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left over goes nowhere
        raise SystemExit(_NOBODY_READS) from None


def refuse(prog: str, message: object, code: int = 1) -> NoReturn:
    """End the program with a message.

    Args:
        prog: How the command is called.
        message: What is wrong and what to do.
        code: The exit code: 1 for what failed, 2 for wrong arguments.

    Raises:
        SystemExit: Always.
    """
    sys.stderr.write(f"{prog}: error: {message}\n")
    raise SystemExit(code)
