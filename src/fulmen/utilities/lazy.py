"""Names that load their module on first use, and the one gate to optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

__all__ = ["is_installed", "lazy_exports", "require"]


def lazy_exports(
    package_name: str, table: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the module-level `__getattr__`, `__dir__` and `__all__` of a package that exports names lazily.

    A name is imported when it is first read, and then kept in the package. Submodules answer as attributes too, whether
    or not they were imported before.

    Args:
        package_name: `__name__` of the package.
        table: Exported name to the module that defines it; `"module:attribute"` where the name there differs.

    Returns:
        The three objects, to be assigned in this order.

    Example::

        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"CSVLogger": "fulmen.loggers.csv_logs"})
    """
    names = sorted(table)

    def __getattr__(name: str) -> Any:
        target = table.get(name)
        if target is None:
            return _submodule(package_name, name)
        module_name, _, attribute = target.partition(":")
        value = getattr(importlib.import_module(module_name), attribute or name)
        setattr(sys.modules[package_name], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package_name]), *names})

    return __getattr__, __dir__, names


def _submodule(package_name: str, name: str) -> ModuleType:
    full_name = f"{package_name}.{name}"
    if not name.startswith("_"):
        try:
            return importlib.import_module(full_name)
        except ModuleNotFoundError as error:
            if error.name != full_name:
                raise
    raise AttributeError(f"module {package_name!r} has no attribute {name!r}", name=name)


def require(module: str, *, extra: str | None, for_: str) -> ModuleType:
    """Import an optional package, or say what needs it and how to install it.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of `fulmen` that installs it; `None` if it has none.
        for_: What needs it, as the user knows it, e.g. a class name.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: The package is not installed. A package that is installed but fails to import something
            else raises its own error unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        package = module.partition(".")[0]
        wanted = package if extra is None else f"'fulmen[{extra}]'"
        raise ModuleNotFoundError(
            f"`{for_}` needs the package `{package}`, which is not installed. Install it: pip install {wanted}",
            name=error.name,
        ) from error


def is_installed(module: str) -> bool:
    """Tell whether a module can be found, without importing it.

    Args:
        module: Dotted name; for a submodule its parent packages are imported.

    Returns:
        True if `import module` would find it.
    """
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
