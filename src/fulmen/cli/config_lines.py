"""Find the lines of config files that an error message is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fulmen.utilities.lazy import require

__all__ = ["with_places"]

_CONFIG_OPTIONS = ("-c", "--config")
# how jsonargparse names keys in its messages
_KEY = re.compile(r"""(?:[Kk]ey|[Oo]ption|[Aa]rgument|Group)\s+["'`]([\w.\-]+)["'`]""")
_NO_SUCH_KEY = re.compile(r"""["'`]([\w.\-]+)["'`] (?:is not expected|not expected)""")


def with_places(message: str, arguments: Sequence[str]) -> str:
    """Add to an error message where in the config files the key stands that it names.

    Args:
        message: The message of jsonargparse.
        arguments: The command line; the config files are those it names.

    Returns:
        The message, with `file:line` for the keys it names that are in a file; unchanged if there are none.
    """
    keys = [*_KEY.findall(message), *_NO_SUCH_KEY.findall(message)]
    places = []
    for file in _config_files(arguments):
        lines = _lines_of_keys(file)
        if lines is None:
            return message.replace('"<unicode string>"', f'"{file}"').replace('"<unicode>"', f'"{file}"')
        for key in dict.fromkeys(keys):
            line = _line_of(key, lines)
            if line is not None:
                places.append(f"  {file}:{line}")
    return "\n".join([message, "set in:", *dict.fromkeys(places)]) if places else message


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for idx, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in _CONFIG_OPTIONS:
            file = Path(value if equals else "".join(arguments[idx + 1 : idx + 2]))
            if file.is_file():
                yield file


def _lines_of_keys(file: Path) -> dict[str, int] | None:
    """Key, joined by dots, to the line it stands in; items of lists have their number. None if it is no YAML."""
    yaml = require("yaml", extra="cli", for_="LightningCLI")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    return dict(_walk(root, ""))


def _walk(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    if node is None:
        return
    if node.id == "mapping":
        for name, value in node.value:
            key = f"{prefix}{name.value}"
            yield key, name.start_mark.line + 1
            yield from _walk(value, f"{key}.")
    elif node.id == "sequence":
        for idx, value in enumerate(node.value):
            yield f"{prefix}{idx}", value.start_mark.line + 1
            yield from _walk(value, f"{prefix}{idx}.")


def _line_of(key: str, lines: dict[str, int]) -> int | None:
    """Line of a key; of a file that is for one subcommand, or names all of them, too."""
    plain = key.replace(".init_args", "")
    for candidate, line in lines.items():
        written = candidate.replace(".init_args", "")
        if plain == written or plain.endswith(f".{written}") or written.endswith(f".{plain}"):
            return line
    return None
