"""A report as one HTML file: no other file, no network, readable without scripts, on a telephone and in the dark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import fulmen
from fulmen.metrics.curve_names import curve_group
from fulmen.reports.chart import DrawnCurve, chart, number_text
from fulmen.reports.metrics_files import Curve
from fulmen.reports.page_style import SCRIPT, STYLE
from fulmen.reports.run_folder import RunContents, flatten, read_run
from fulmen.utilities.files import atomic_open

__all__ = ["DEFAULT_NAME", "page_of", "write_report"]

DEFAULT_NAME = "report.html"
_COLORS = 8
_DASHES = 4


def write_report(
    runs: str | os.PathLike[str] | RunContents | Sequence[str | os.PathLike[str] | RunContents],
    path: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of a run, or of several beside each other.

    Args:
        runs: Folder of a run, several of them, or what `read_run` returned.
        path: The HTML file; `report.html` in the folder of the (first) run by default.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: A folder holds nothing that a run writes; or there is no run, or no folder for the file.

    Example::

        write_report(["lightning_logs/version_0", "lightning_logs/version_1"], "compared.html")
    """
    several = [runs] if isinstance(runs, (str, os.PathLike, RunContents)) else list(runs)
    contents = [each if isinstance(each, RunContents) else read_run(each) for each in several]
    if not contents:
        raise ValueError("`write_report` got no run to report on. Pass at least one folder.")
    if path is None and not contents[0].folder:
        raise ValueError("`write_report` does not know where to write: the run has no folder. Pass `path=...`.")
    target = Path(contents[0].folder) / DEFAULT_NAME if path is None else Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(target, "w", durable=False) as file:
        file.write(page_of(contents))
    return target


def page_of(runs: Sequence[RunContents]) -> str:
    """Return the report as HTML.

    Args:
        runs: At least one.
    """
    _tell_apart(runs)
    title = " · ".join(run.name for run in runs)
    body = [_head(runs[0])] if len(runs) == 1 else [_heads(runs)]
    settings = _settings("Hyperparameters", runs, [run.hparams for run in runs])
    settings += _settings("Environment", runs, [_environment(run) for run in runs])
    body += [_curves(runs), _last_values(runs), f'<div class="beside">{settings}</div>']
    for run in runs:
        of = f" · {run.name}" if len(runs) > 1 else ""
        body += [_checkpoints(run, of), _attempts(run, of)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_t(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}"
        f"<footer>Written by fulmen {_t(fulmen.__version__)}. Thin lines are the values, thick lines over them their"
        " running mean; &times; stands where a value was not finite.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _t(value: Any) -> str:
    return escape(str(value), quote=True)


def _tell_apart(runs: Sequence[RunContents]) -> None:
    """Runs of one name get their folders as names."""
    names = [run.name for run in runs]
    for number, run in enumerate(runs, 1):
        if names.count(run.name) > 1:
            run.name = f"{run.folder or run.name} ({number})" if run.folder in ("", *names) else run.folder


def _prose(text: str) -> str:
    """A sentence; what stands in backticks is code."""
    return "".join(f"<code>{_t(part)}</code>" if n % 2 else _t(part) for n, part in enumerate(text.split("`")))


# ---- what happened
def _badge(run: RunContents) -> str:
    status = str(run.main.get("status", ""))
    words = {
        "finished": ("good", "finished"),
        "interrupted": ("open", "interrupted"),
        "failed": ("failed", "failed"),
        "running": ("open", "no end recorded"),
    }
    kind, word = words.get(status, ("open", "end not recorded"))
    return f'<span class="badge {kind}">{word}</span>'


def _head(run: RunContents) -> str:
    return f"<h1>{_t(run.name)}{_badge(run)}</h1>{_how_it_ended(run)}{_tiles(run)}{_problems(run)}"


def _heads(runs: Sequence[RunContents]) -> str:
    rows = []
    for number, run in enumerate(runs):
        curve_mark = _mark(number % _COLORS, 0)
        cells = [f"{curve_mark} {_t(run.name)}{_badge(run)}", *(_t(value) for _, value in _facts(run))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{_t(name)}</th>" for name, _ in _facts(runs[0]))
    problems = "".join(_problems(run, f"{run.name}: ") for run in runs)
    table = f"<table><tr><th>run</th>{heads}</tr>{''.join(rows)}</table>"
    return f'<h1>{len(runs)} runs compared</h1><div class="card scroll first">{table}</div>{problems}'


def _how_it_ended(run: RunContents) -> str:
    main = run.main
    parts = [str(main[key]) for key in ("model", "reason") if main.get(key)]
    if main.get("status") == "running":
        parts.append("it is still running, or was ended from outside")
    if run.changed is not None and main.get("status") in (None, "running"):
        parts.append(f"metrics last written {_when(run.changed.isoformat())}")
    error = f"<pre>{_t(main['error'])}</pre>" if main.get("error") else ""
    return f'<p class="sub">{_prose(" · ".join(parts))}</p>{error}'


def _facts(run: RunContents) -> list[tuple[str, str]]:
    """The first things one wants to know."""
    main = run.main
    epochs = main.get("epochs") if main.get("epochs") is not None else run.last_epoch
    steps = main.get("steps")
    if steps is None:
        steps = max((max(curve.steps) for curve in run.curves.values() if curve.steps), default=None)
    seconds = [each["seconds"] for each in run.runs if each.get("method") == "fit" and each.get("seconds") is not None]
    parameters = main.get("parameters")
    return [
        ("duration", _duration(sum(seconds)) if seconds else "-"),
        ("epochs" if main.get("epochs") is not None else "last epoch", "-" if epochs is None else f"{epochs:g}"),
        ("steps" if main.get("steps") is not None else "last step", "-" if steps is None else f"{steps:,.0f}"),
        ("parameters", "-" if parameters is None else _count(parameters)),
        ("started", _when(run.runs[0].get("started")) if run.runs else "-"),
    ]


def _tiles(run: RunContents) -> str:
    facts = [(name, value) for name, value in _facts(run) if value != "-"]
    facts += [(f"{word} {name}", number_text(value)) for name, word, value in _bests(run)]
    tiles = (f'<div class="tile"><b>{_t(value)}</b><span>{_t(name)}</span></div>' for name, value in facts)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _bests(run: RunContents) -> Iterator[tuple[str, str, float]]:
    """The best monitored value, or the last ones of validation and test."""
    saved = run.main.get("checkpoints") or {}
    if saved.get("monitor") and saved.get("best_score") is not None:
        yield str(saved["monitor"]), "best", float(saved["best_score"])
        return
    named = [(name, curve) for name, curve in run.curves.items() if name.startswith(("val", "test")) and curve.values]
    for name, curve in named[:3]:
        yield name, "last", curve.values[-1]


def _problems(run: RunContents, of: str = "") -> str:
    return "".join(f'<p class="note">{_t(of)}{_prose(problem)}.</p>' for problem in run.problems)


# ---- curves
def _curves(runs: Sequence[RunContents]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.curves)
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(curve_group(name), []).append(name)
    if not panels:
        return ""
    cards = [_panel(title, panels[title], runs) for title in sorted(panels, key=lambda title: _rank(panels[title]))]
    return f'<h2>Curves</h2><div class="grid2">{"".join(cards)}</div>'


def _rank(names: Sequence[str]) -> tuple[bool, bool]:
    """Panels of what was trained and validated come first, learning rates and the like last."""
    has_stage = any(curve_group(name) != name for name in names)
    return not has_stage, any("lr-" in name for name in names)


def _panel(title: str, names: Sequence[str], runs: Sequence[RunContents]) -> str:
    several = len(runs) > 1
    drawn = []
    for run_idx, run in enumerate(runs):
        for name_idx, name in enumerate(names):
            if name not in run.curves:
                continue
            label = (f"{run.name}: {name}" if len(names) > 1 else run.name) if several else name
            color, dash = (run_idx, name_idx) if several else (name_idx, 0)
            drawn.append(DrawnCurve(label, run.curves[name], color % _COLORS, dash % _DASHES))
    keys = [(_mark(each.color, each.dash), each.label) for each in drawn]
    if several:  # else all pairs of run and name
        keys = [(_mark(n % _COLORS, 0), run.name) for n, run in enumerate(runs) if set(names) & run.curves.keys()]
        keys += [(_mark(None, n % _DASHES), name) for n, name in enumerate(names)] if len(names) > 1 else []
    legend = "".join(f"<span>{mark}{_t(label)}</span>" for mark, label in keys)
    return (
        f'<div class="card"><h3>{_t(title)}</h3><div class="legend">{legend}</div>{chart(title, drawn)}'
        '<div class="readout"></div></div>'
    )


def _mark(color: int | None, dash: int) -> str:
    return (
        f'<svg viewBox="0 0 20 8" aria-hidden="true" style="display:inline-block;width:20px;height:8px">'
        f'<polyline class="{"any" if color is None else f"c{color}"} d{dash}" points="1,4 19,4"/></svg>'
    )


def _last_values(runs: Sequence[RunContents]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    if not names:
        return ""
    if len(runs) == 1:
        head = "".join(f'<th class="n">{word}</th>' for word in ("last", "at step", "min", "max", "values"))
        rows = [_value_row(name, runs[0].curves[name]) for name in names]
    else:
        head = "".join(f'<th class="n">{_t(run.name)}</th>' for run in runs)
        rows = [[number_text(run.curves[n].values[-1]) if n in run.curves else "" for run in runs] for n in names]
    lines = "".join(
        f"<tr><td>{_t(name)}</td>{''.join(f'<td class=n>{_t(cell)}</td>' for cell in row)}</tr>"
        for name, row in zip(names, rows, strict=True)
    )
    title = "Values" if len(runs) == 1 else "Last values"
    return f'<h2>{title}</h2><div class="card scroll"><table><tr><th>name</th>{head}</tr>{lines}</table></div>'


def _value_row(name: str, curve: Curve) -> list[str]:
    finite = [value for _, value in curve.finite]
    ends = [number_text(min(finite)), number_text(max(finite))] if finite else ["", ""]
    bad = len(curve.not_finite)
    count = f"{len(curve.values)}" + (f" ({bad} not finite)" if bad else "")
    return [number_text(curve.values[-1]), f"{curve.steps[-1]:g}", *ends, count]


# ---- settings
def _environment(run: RunContents) -> list[tuple[str, str]]:
    main = run.main
    facts = list(flatten(main["environment"])) if isinstance(main.get("environment"), dict) else []
    return facts + [(key, str(main[key])) for key in ("command",) if main.get(key)]


def _settings(title: str, runs: Sequence[RunContents], settings: Sequence[list[tuple[str, str]]]) -> str:
    """A table of names and values; with several runs a column each, what differs in bold."""
    columns = [dict(each) for each in settings]
    names = list(dict.fromkeys(name for each in settings for name, _ in each))
    if not names:
        return ""
    head = ""
    if len(runs) > 1:
        head = "<tr><th></th>" + "".join(f"<th>{_t(run.name)}</th>" for run in runs) + "</tr>"
    rows = []
    for name in names:
        values = [column.get(name, "") for column in columns]
        tag = "b" if len(set(values)) > 1 else "code"
        cells = "".join(f"<td><{tag}>{_t(value)}</{tag}></td>" for value in values)
        rows.append(f'<tr><td class="k">{_t(name)}</td>{cells}</tr>')
    table = f'<div class="card scroll"><table>{head}{"".join(rows)}</table></div>'
    return f"<section><h2>{_t(title)}</h2>{table}</section>"


# ---- checkpoints and attempts
def _checkpoints(run: RunContents, of: str) -> str:
    if not run.checkpoints:
        return ""
    monitor = next((r["checkpoints"].get("monitor") for r in reversed(run.runs) if r.get("checkpoints")), None)
    rows = []
    for each in run.checkpoints:
        marks = " ".join(word for word, on in (("best", each.is_best), ("last", each.is_last)) if on)
        cells = [
            f"<td><code>{_t(each.name)}</code></td><td class=mark>{marks}</td>",
            f'<td class="n">{"" if each.score is None else number_text(each.score)}</td>',
            f'<td class="n">{"no longer there" if each.size is None else _size(each.size)}</td>',
            f'<td class="n">{"" if each.modified is None else _when(each.modified.isoformat())}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = f'<th>file</th><th></th><th class="n">{_t(monitor or "score")}</th><th class="n">size</th>'
    return (
        f'<h2>Checkpoints{_t(of)}</h2><div class="card scroll"><table><tr>{head}<th class="n">written</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _attempts(run: RunContents, of: str) -> str:
    if not run.runs:
        return ""
    rows = []
    for each in run.runs:
        ended = each.get("reason") or each.get("error") or ""
        seconds, steps = each.get("seconds"), each.get("steps")
        cells = [
            f"<td>{_t(each.get('method', ''))}</td><td>{_t(each.get('status', ''))}</td>",
            f"<td>{_prose(str(ended).partition(chr(10))[0])}</td>",
            f'<td class="n">{_when(each.get("started"))}</td>',
            f'<td class="n">{"" if seconds is None else _duration(seconds)}</td>',
            f'<td class="n">{"" if steps is None else _t(steps)}</td>',
            f"<td>{_t(os.path.basename(str(each.get('resumed_from') or '')))}</td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ("call", "status", "why it ended"), ("started", "duration", "at step"), ("checkpoint loaded",)
    row = "".join(f"<th{' class=n' if n == 1 else ''}>{word}</th>" for n, words in enumerate(heads) for word in words)
    return f'<h2>Calls{_t(of)}</h2><div class="card scroll"><table><tr>{row}</tr>{"".join(rows)}</table></div>'


# ---- words
def _when(text: Any) -> str:
    try:
        return _t(datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M"))
    except (ValueError, OverflowError, OSError):
        return _t(text or "")


def _duration(seconds: Any) -> str:
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    words = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {word}" for count, word in words if count) or "0 s"


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _count(number: Any) -> str:
    value = float(number)
    for unit in ("", " K", " M", " B"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"
