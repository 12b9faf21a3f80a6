"""Names that load on first use, and the gate to optional packages."""

import subprocess
import sys

import pytest

from fulmen.utilities.lazy import is_installed, lazy_exports, require


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on disk with two modules and lazy names."""
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from fulmen.utilities.lazy import lazy_exports\n"
        "__getattr__, __dir__, __all__ = lazy_exports(__name__, {\n"
        "    'number': 'lazy_example.numbers_', 'other': 'lazy_example.numbers_:number',\n"
        "    'broken': 'lazy_example.broken'})\n"
    )
    (folder / "numbers_.py").write_text("number = 7\n")
    (folder / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lazy_example"
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_example"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_first_read_and_then_kept(package):
    module = __import__(package)
    assert "lazy_example.numbers_" not in sys.modules

    assert module.number == 7
    assert vars(module)["number"] == 7


def test_a_name_can_differ_from_that_in_its_module(package):
    assert __import__(package).other == 7


def test_dir_and_all_list_the_names(package):
    module = __import__(package)

    assert module.__all__ == ["broken", "number", "other"]
    assert {"number", "other", "__name__"} <= set(dir(module))


def test_a_submodule_answers_as_an_attribute(package):
    assert __import__(package).numbers_.number == 7


def test_an_unknown_name_is_an_attribute_error(package):
    module = __import__(package)

    with pytest.raises(AttributeError, match="'lazy_example' has no attribute 'nothing'"):
        _ = module.nothing
    assert not hasattr(module, "_private")


def test_a_submodule_that_fails_to_import_shows_its_own_error(package):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        _ = __import__(package).broken


def test_require_returns_the_module():
    assert require("json.decoder", extra="none", for_="this").__name__ == "json.decoder"


def test_require_says_who_needs_what_and_how_to_install_it():
    with pytest.raises(ModuleNotFoundError) as caught:
        require("not_a_package.part", extra="loggers", for_="WandbLogger")

    text = str(caught.value)
    assert text == (
        "`WandbLogger` needs the package `not_a_package`, which is not installed."
        " Install it: pip install 'fulmen[loggers]'"
    )


def test_require_names_the_package_itself_if_no_extra_installs_it():
    with pytest.raises(ModuleNotFoundError, match=r"Install it: pip install not_a_package$"):
        require("not_a_package", extra=None, for_="this")


def test_require_leaves_the_errors_of_an_installed_package_alone(package):
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'a_package_that_is_not_there'"):
        require(f"{package}.broken", extra="x", for_="this")


def test_is_installed_looks_without_importing():
    assert is_installed("json.decoder")
    assert not is_installed("not_a_package")
    assert not is_installed("not_a_package.part")


def test_is_installed_believes_a_blocked_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked_package", None)

    assert not is_installed("blocked_package")


def test_lazy_exports_does_not_import_anything():
    _, _, names = lazy_exports("fulmen.utilities", {"a": "not.there"})

    assert names == ["a"]


def test_importing_the_utilities_loads_neither_torch_nor_any_optional_package():
    code = (
        "import sys, fulmen.utilities\n"
        "heavy = ['torch', 'numpy', 'fsspec', 'torchmetrics', 'rich', 'tqdm', 'yaml']\n"
        "print([name for name in heavy if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_importing_every_module_of_the_utilities_loads_no_optional_package():
    code = (
        "import sys, torch, importlib, pkgutil\n"
        "before = set(sys.modules)\n"
        "import fulmen.utilities\n"
        "for found in pkgutil.iter_modules(fulmen.utilities.__path__, 'fulmen.utilities.'):\n"
        "    importlib.import_module(found.name)\n"
        "heavy = ['fsspec', 'torchmetrics', 'torch._dynamo', 'tensorboard', 'rich', 'tqdm', 'jsonargparse', 'scipy',"
        " 'yaml', 'matplotlib']\n"
        "print([name for name in heavy if name in sys.modules and name not in before])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_every_exported_name_of_the_utilities_exists():
    import fulmen.utilities

    missing = [name for name in fulmen.utilities.__all__ if not hasattr(fulmen.utilities, name)]

    assert missing == []
