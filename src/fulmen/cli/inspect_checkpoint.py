"""`fulmen inspect`: what is in a checkpoint, and whether it is healthy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fulmen.cli.text import columns, count_text, paragraph, size_text
from fulmen.utilities.command_line import CommandParser, refuse, say

__all__ = ["command", "make_parser"]

_PROG = "fulmen inspect"
_DESCRIPTION = """\
Show what is in a checkpoint: how far the training was, weights, hyperparameters, the states of
callbacks and optimizers; and check it: checksums, NaN and infinite weights.

Reads files of fulmen and of Lightning, files of `torch.save` with weights, .safetensors, and folders
of shards or of DeepSpeed. Nothing but tensors and plain data is loaded, so no code of a file runs."""
_EPILOG = """\
exit code:
  0 healthy, 1 damaged or with values that are not finite, 2 wrong arguments

examples:
  fulmen inspect last.ckpt
  fulmen inspect last.ckpt --all
  fulmen inspect last.ckpt --json | jq .hyper_parameters"""
_MOST_ROWS = 20
_WIDEST_VALUE = 200
_FORMATS = {
    "fulmen": "checkpoint of fulmen",
    "lightning": "checkpoint of Lightning",
    "weights": "weights (a state_dict)",
    "safetensors": "weights (safetensors)",
    "other": "file of torch.save, of no Trainer",
    "unreadable": "unreadable",
}


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen inspect`.

    Args:
        arguments: What follows the command's name.
    """
    parser = make_parser()
    options = parser.parse_args(list(arguments))
    if options.depth is not None and options.depth < 1:
        parser.error(f"--depth={options.depth} groups nothing; it is 1 or more")
    from fulmen.cli.checkpoint_summary import summarize_checkpoint  # loads torch

    try:
        summary = summarize_checkpoint(options.checkpoint, quick=options.quick, trust=options.trust, key=options.key)
    except (OSError, KeyError, ImportError, ValueError) as error:
        refuse(_PROG, error.args[0] if isinstance(error, KeyError) else error)
    if options.json:
        say(json.dumps(summary, indent=2))
    else:
        for part in _parts(summary, options.depth, show_all=options.all):
            say(part)
    raise SystemExit(1 if summary["health"]["problems"] else 0)


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="the file, or a folder of shards or of DeepSpeed")
    parser.add_argument("--all", action="store_true", help="one row for each tensor, with its shape; long values whole")
    parser.add_argument("--depth", type=int, metavar="N", help="group weights by the first N parts of their names")
    parser.add_argument("--key", help="where in the file the weights are, e.g. ema.model; looked for by default")
    parser.add_argument("--quick", action="store_true", help="read no tensors: no checksums, no search for NaN")
    parser.add_argument(
        "--trust", action="store_true", help="also load objects that are no plain data: this runs code of the file"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    return parser


def _parts(summary: dict[str, Any], depth: int | None, *, show_all: bool) -> Iterator[str]:
    yield summary["path"]
    yield columns(list(_facts(summary)))
    yield f"\nhealth\n{columns(list(_health(summary['health'])))}"
    if summary["format"] == "unreadable":
        return
    if summary["weights"]:
        yield f"\n{_weights_title(summary)}\n{_weights(summary['weights'], depth, show_all=show_all)}"
    for name, title in (
        ("hyper_parameters", "hyperparameters"),
        ("datamodule_hyper_parameters", "hyperparameters of the datamodule"),
        ("callbacks", "callbacks"),
    ):
        if summary.get(name):
            yield f"\n{title}\n{_settings(summary[name], show_all=show_all)}"
    if summary["optimizers"]:
        yield f"\noptimizers\n{columns(list(_optimizers(summary['optimizers'])))}"
    if summary["lr_schedulers"]:
        schedulers = {str(number): state for number, state in enumerate(summary["lr_schedulers"])}
        yield f"\nlearning rate schedulers\n{_settings(schedulers, show_all=show_all)}"
    if summary["other"]:
        yield f"\nother entries\n{_settings(summary['other'], show_all=show_all)}"


def _folder_of(summary: dict[str, Any]) -> str:
    return ", folder of DeepSpeed" if summary.get("engine") == "deepspeed" else ", folder of shards"


def _facts(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind = _FORMATS[summary["format"]] + (_folder_of(summary) if summary.get("is_sharded") else "")
    written_by = summary.get("written_by")
    engine = summary.get("deepspeed")
    yield "kind", kind + (f", layout of Lightning {written_by['layout_of_lightning']}" if written_by else "")
    if "size_bytes" in summary:
        yield "size", f"{size_text(summary['size_bytes'])}, saved {summary['modified'].replace('T', ' ')}"
    if engine:
        processes = count_text(engine["num_processes"], "process", "processes")
        yield "saved by", f"{processes}, stage {engine['stage']} of ZeRO"
    for name in ("epoch", "global_step", "position"):
        if name in summary:
            yield name.replace("_", " "), str(summary[name])
    if "can_resume" in summary:
        yield "resume", _how_to_resume(summary)
    if len(summary.get("runs", [])) > 1:
        yield "restarts", f"written by attempt {len(summary['runs'])} of its run"


def _how_to_resume(summary: dict[str, Any]) -> str:
    conditions = summary.get("resume_conditions")
    if not summary["can_resume"]:
        if conditions:
            return f"`fabric.load(...)` can go on from it {conditions}"
        lacking = "no states of loops" if summary["optimizers"] else "no optimizer states"
        return f"no: it holds {lacking}; its weights can be loaded"
    return f"`fit(ckpt_path=...)` can go on from it {conditions or ''}".rstrip()


def _health(health: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "checksums", health["checksums"]
    if health.get("finite") is not None:
        yield "values", "all finite" if health["finite"] else "NOT FINITE"
    elif "finite" in health:
        yield "values", "not looked at"
    if health.get("not_loaded"):
        yield "not loaded", f"{', '.join(health['not_loaded'])}: no plain data (--trust loads it)"
    for problem in health["problems"][:_MOST_ROWS]:
        yield "PROBLEM", problem
    if len(health["problems"]) > _MOST_ROWS:
        yield "PROBLEM", f"and {len(health['problems']) - _MOST_ROWS} more"


# ---- weights


def _weights_title(summary: dict[str, Any]) -> str:
    weights = summary["weights"]
    place = f" under `{summary['weights_key']}`" if summary["weights_key"] else ""
    total = count_text(sum(each["values"] for each in weights), "value")
    size = size_text(sum(each["bytes"] for each in weights))
    return f"weights{place}: {total} in {count_text(len(weights), 'tensor')}, {size}"


def _weights(weights: list[dict[str, Any]], depth: int | None, *, show_all: bool) -> str:
    if show_all:
        rows = [(each["name"], _shape(each), each["dtype"], f"{each['values']:,}", _mark(each)) for each in weights]
        return columns([("tensor", "shape", "dtype", "values", ""), *rows], right=(3,))
    groups = _grouped(weights, depth)
    rows = [
        (name, str(len(each)), f"{sum(t['values'] for t in each):,}", size_text(sum(t["bytes"] for t in each)),
         ", ".join(dict.fromkeys(t["dtype"] for t in each)) + ("  " + mark if (mark := _mark(*each)) else ""))
        for name, each in groups.items()
    ]  # fmt: skip
    return columns([("module", "tensors", "values", "size", "dtype"), *rows], right=(1, 2, 3))


def _grouped(weights: list[dict[str, Any]], depth: int | None) -> dict[str, list[dict[str, Any]]]:
    """Group tensors by their module; as deep as fits into some rows, unless the depth is given."""
    deepest = max(each["name"].count(".") for each in weights) or 1
    for candidate in [depth] if depth is not None else range(deepest, 0, -1):
        groups: dict[str, list[dict[str, Any]]] = {}
        for each in weights:
            parts = each["name"].split(".")
            groups.setdefault(".".join(parts[: min(candidate, len(parts) - 1)]) or "(top)", []).append(each)
        if len(groups) <= _MOST_ROWS:
            break
    return groups


def _shape(each: dict[str, Any]) -> str:
    return " x ".join(map(str, each["shape"])) or "scalar"


def _mark(*tensors: dict[str, Any]) -> str:
    return "NOT FINITE" if any("not_finite" in each for each in tensors) else ""


# ---- the rest


def _settings(settings: Mapping[str, Any], *, show_all: bool) -> str:
    parts: list[str] = []
    plain = [(name, _value(value, show_all)) for name, value in settings.items() if not _is_nested(value)]
    if plain:
        parts.append(columns(plain))
    for name, value in settings.items():
        if _is_nested(value):
            parts.append(paragraph(name))
            parts.append(columns([(key, _value(each, show_all)) for key, each in value.items()], indent=4))
    return "\n".join(parts)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _value(value: Any, show_all: bool) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if show_all or len(text) <= _WIDEST_VALUE else f"{text[: _WIDEST_VALUE - 3]}..."


def _optimizers(optimizers: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for number, optimizer in enumerate(optimizers):
        if "what" in optimizer:
            yield str(number), str(optimizer["what"])
            continue
        groups = optimizer["param_groups"]
        rates = ", ".join(
            f"lr={group.get('lr')} for {count_text(group['num_params'], 'parameter')}" for group in groups
        )
        yield str(number), f"{rates}; {size_text(optimizer['bytes'])} of state"
