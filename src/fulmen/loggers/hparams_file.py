"""`hparams.yaml`: the hyperparameters of a run, one top-level key a line, read by any YAML parser.

Values are written in YAML's flow style (close to JSON), so no YAML package is needed to write them.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch

from fulmen.loggers.params import convert_params, is_array, qualified_name
from fulmen.loggers.text_file import replace_text
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = ["hparams_text", "write_hparams"]

_BARE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # not strings in YAML 1.1
_LARGEST_ARRAY = 100


def write_hparams(path: str, hparams: Mapping[str, Any]) -> None:
    """Write hyperparameters as YAML, replacing an earlier file at once.

    Values that YAML cannot hold are written as the name of their type, with a warning that names the keys.

    Args:
        path: Local path or URL of the file.
        hparams: Name to value.
    """
    text, inexact = hparams_text(hparams)
    if inexact:
        rank_zero_warn(
            f"{path!r} holds only the type's name of the hyperparameters {inexact!r}, because YAML cannot hold their"
            " values. Leave them out by `save_hyperparameters(ignore=...)` if they are not settings.",
            category=PossibleUserWarning,
        )
    replace_text(path, text)


def hparams_text(hparams: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return hyperparameters as YAML.

    Args:
        hparams: Name to value.

    Returns:
        The text, and the keys whose values could not be kept exactly.
    """
    lines, inexact = [], []
    for key in sorted(hparams, key=str):
        text, exact = _flow(hparams[key])
        lines.append(f"{_key(key)}: {text}\n")
        if not exact:
            inexact.append(str(key))
    return "".join(lines) or "{}\n", inexact


def _key(key: Any) -> str:
    name = str(key)
    if _BARE_KEY.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return _quoted(name)


def _flow(value: Any) -> tuple[str, bool]:
    """A value in flow style, and whether it reads back as the same."""
    scalar = _scalar(value)
    if scalar is not None:
        return scalar, True
    if isinstance(value, Mapping):
        pairs = [(_flow(key), _flow(item)) for key, item in value.items()]
        exact = all(key[1] and item[1] for key, item in pairs)
        return "{" + ", ".join(f"{key[0]}: {item[0]}" for key, item in pairs) + "}", exact
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        items = [_flow(item) for item in value]
        return "[" + ", ".join(item[0] for item in items) + "]", all(item[1] for item in items)
    if isinstance(value, Namespace) or (hasattr(value, "__dataclass_fields__") and not isinstance(value, type)):
        return _flow(convert_params(value))
    if is_array(value) and torch.Size(value.shape).numel() <= _LARGEST_ARRAY:
        return _flow(value.tolist())
    return _quoted(qualified_name(value)), False


def _scalar(value: Any) -> str | None:
    """Text of a scalar; `None` if the value is none."""
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return _quoted(value.name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _float(float(value))
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (PurePath, torch.dtype, torch.device)):
        return _quoted(str(value))
    return None


def _float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    if "e" in text and "." not in text:  # YAML 1.1 takes `1e-05` for a string
        text = text.replace("e", ".0e")
    return text


def _quoted(text: str) -> str:
    if text.isascii() and "\x7f" not in text:
        return json.dumps(text)
    # YAML has no surrogate pairs, so each character beyond ASCII gets its own escape.
    return '"' + "".join(json.dumps(c)[1:-1] if " " <= c < "\x7f" else f"\\U{ord(c):08X}" for c in text) + '"'
