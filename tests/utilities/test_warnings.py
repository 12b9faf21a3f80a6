"""Hiding advice that does not apply."""

import subprocess
import sys
import warnings

import pytest

from fulmen.utilities.warnings import PossibleUserWarning, disable_possible_user_warnings


def test_possible_user_warnings_can_be_hidden():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disable_possible_user_warnings()
        warnings.warn("maybe", PossibleUserWarning, stacklevel=1)
        warnings.warn("surely", UserWarning, stacklevel=1)

    assert [str(warning.message) for warning in caught] == ["surely"]


def test_possible_user_warnings_can_be_hidden_for_one_module():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disable_possible_user_warnings(module="another_module")
        with pytest.raises(PossibleUserWarning):
            warnings.warn("maybe", PossibleUserWarning, stacklevel=1)


@pytest.mark.parametrize(("value", "shown"), [("0", False), ("OFF", False), ("1", True), ("", True)])
def test_the_environment_can_hide_them(value, shown, monkeypatch):
    monkeypatch.setenv("POSSIBLE_USER_WARNINGS", value)
    code = "from fulmen.utilities.warnings import *; import warnings; warnings.warn('maybe', PossibleUserWarning)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ("PossibleUserWarning: maybe" in done.stderr) == shown
