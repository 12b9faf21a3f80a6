"""The import hook: `lightning...`, `pytorch_lightning...` and `lightning_fabric...` are found by a table of names."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import CodeType, ModuleType
from typing import Any

import fulmen
from fulmen.compat.missing import reason_for
from fulmen.compat.table import MODULES, PROGRAMS, table_name
from fulmen.compat.workers import install_in_workers
from fulmen.utilities.migration import LAYOUT_VERSION

__all__ = ["install"]

_TRAINER = "fulmen.trainer.trainer"
_ROOTS = ("lightning", "pytorch_lightning", "lightning_fabric")
_DISTRIBUTIONS = ("lightning", "pytorch-lightning", "lightning-fabric")
# Programs quieten these by `logging.getLogger(...)`; they become other names of our loggers.
_LOGGERS = {
    "lightning": "fulmen",
    "lightning.pytorch": "fulmen",
    "lightning.fabric": "fulmen",
    "lightning.pytorch.utilities.rank_zero": "fulmen.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero": "fulmen.utilities.rank_zero",
    "pytorch_lightning": "fulmen",
    "pytorch_lightning.utilities.rank_zero": "fulmen.utilities.rank_zero",
    "lightning_fabric": "fulmen",
    "lightning_fabric.utilities.rank_zero": "fulmen.utilities.rank_zero",
}


def install() -> None:
    """Answer imports of `lightning`, `pytorch_lightning`, `lightning_fabric` and their modules from now on.

    The names are the same objects as those of this package, so `isinstance` holds across both. An installed Lightning
    is not used, but it stays as it is. It holds for the processes that `multiprocessing` starts, too: workers of a
    DataLoader, of `strategy="ddp_spawn"`. Calling again changes nothing.

    Raises:
        RuntimeError: The real Lightning was imported before.
    """
    if any(isinstance(finder, _NamesFinder) for finder in sys.meta_path):
        return
    for root in _ROOTS:
        if root in sys.modules:
            origin = getattr(sys.modules[root], "__file__", None)
            raise RuntimeError(
                f"`fulmen.compat.install()` comes too late: `{root}` is imported already, from {origin!r}, and its"
                " classes would mix with ours. Call `install()` before the first import of it, or run the program by"
                " `python -m fulmen.compat script.py`."
            )
    sys.meta_path.insert(0, _NamesFinder())
    install_in_workers(install)
    for theirs, ours in _LOGGERS.items():
        logging.Logger.manager.loggerDict.setdefault(theirs, logging.getLogger(ours))


def _attach() -> None:
    """Add what packages read of the Trainer though it begins with `_`."""
    from fulmen.compat.semi_private import attach  # needs torch, which `install` does not load

    attach()


class _NamesFinder(DistributionFinder, Loader):
    """Finds and loads the modules of the table, and the version that `importlib.metadata` reports."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in _ROOTS:
            return None
        name = table_name(fullname)
        if name not in MODULES:
            # Without `name`: else `from lightning.pytorch import X` would replace the message by its own.
            raise ModuleNotFoundError(_not_provided(fullname))
        # a package, as it may have submodules; but `python -m` runs no package
        return ModuleSpec(fullname, self, origin="fulmen.compat", is_package=name not in PROGRAMS)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # the usual kind of module

    def exec_module(self, module: ModuleType) -> None:
        table = MODULES[table_name(module.__name__)]
        if _TRAINER in sys.modules:  # a program that has its Trainer from fulmen, and a package that knows Lightning's
            _attach()

        def get(name: str) -> Any:
            if name in table:
                module_name, _, attribute = table[name].partition(":")
                if module_name == _TRAINER:
                    _attach()
                value = getattr(importlib.import_module(module_name), attribute)
                setattr(module, name, value)
                return value
            if table_name(f"{module.__name__}.{name}") in MODULES:
                return importlib.import_module(f"{module.__name__}.{name}")
            raise AttributeError(_not_provided(f"{module.__name__}.{name}"), name=name, obj=module)

        module.__dict__.update(
            __doc__=f"Names of `{module.__name__}`, answered by fulmen {fulmen.__version__}.",
            __version__=LAYOUT_VERSION,
            __all__=sorted(name for name in table if not name.startswith("_")),
            __getattr__=get,
            __dir__=lambda: sorted({*vars(module), *table}),
        )

    def get_code(self, fullname: str) -> CodeType | None:
        """Return what `python -m` runs."""
        name = table_name(fullname)
        if name not in PROGRAMS:
            return None
        call = f"run_program({name!r}, 'python -m {fullname}')"
        return compile(f"from fulmen.compat.programs import run_program\n{call}\n", fullname, "exec")

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        wanted = None if context is None else context.name
        for name in _DISTRIBUTIONS:
            if wanted is None or wanted.lower().replace("_", "-") == name:
                yield _AnsweredDistribution(name)


class _AnsweredDistribution(Distribution):
    """What `importlib.metadata.version("lightning")` reads."""

    def __init__(self, name: str) -> None:
        self._distribution_name = name

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {self._distribution_name}\nVersion: {LAYOUT_VERSION}\n"

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"`{self._distribution_name}` is answered by `fulmen.compat` and has no file {path!r}.")


def _not_provided(name: str) -> str:
    reason = reason_for(table_name(name))
    if reason is not None:
        return (
            f"`{name}` is not provided by fulmen {fulmen.__version__}: {reason}."
            " Do without it, or run the program with Lightning itself."
        )
    return (
        f"`{name}` is not provided by fulmen {fulmen.__version__}: it is not among the names of Lightning"
        f" {LAYOUT_VERSION} that this version answers for. Do without it, or run the program with Lightning itself."
    )
