"""`AimLogger`: a repository on disk, queried through Aim's own `Repo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from fulmen.loggers import AimLogger, Logger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import BackEnd, Kind


class BackEndOfLogger(BackEnd):
    package = "aim"
    extra = "aim"
    media = frozenset(("image", "figure", "text", "histogram", "audio", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # about a second to make a repository

    def make(self, **arguments: Any) -> Logger:
        quiet = {"system_tracking_interval": None, "log_system_params": False, "capture_terminal_logs": False}
        return AimLogger(self.folder / "aim", **{**quiet, **arguments})

    def again(self, logger: Logger) -> Logger:
        return self.make(run_hash=logger.version)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        run, points = self._run(logger), {}
        for name, context, _ in run.iter_metrics_info():
            subset = context.to_dict().get("subset")
            if name != "epoch":
                values = run.get_metric(name, context).data.items()
                whole = name if subset is None else f"{subset}_{name}"
                points[whole] = [(int(step), float(value)) for step, (value, *_) in values]
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return flatten_dict(self._run(logger)["hparams"])

    def status(self, logger: Logger) -> str:
        return str(self._run(logger)["status"])

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        run = self._run(logger)
        return {name: set(run["checkpoints"][name]["aliases"]) for name in run.artifacts}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        from aim.storage.context import Context

        run = self._run(logger)
        if kind == "artifact":
            return [(None, Path(urlparse(run.artifacts[key].uri).path).read_bytes())]
        kinds = {"figure": "image", "histogram": "distribution"}
        read = getattr(run, f"get_{kinds.get(kind, kind)}_sequence")
        found: list[tuple[int | None, Any]] = []
        for step, (values, *_) in read(key, Context({})).data.items():
            several = values if isinstance(values, list) else [values]
            found += [(int(step), _content(kind, value)) for value in several]
        return found

    def _run(self, logger: Logger) -> Any:
        from aim import Repo
        from aim.sdk.index_manager import RepoIndexManager

        repo = Repo(str(self.folder / "aim"))
        RepoIndexManager.get_index_manager(repo).index(logger.version)  # as `aim up` does, or `aim storage reindex`
        return repo.get_run(logger.version)


def _content(kind: Kind, value: Any) -> Any:
    if kind in ("image", "figure"):
        return value.size
    if kind == "text":
        return value.data
    return sum(value.weights) if kind == "histogram" else len(value.get().getvalue())
