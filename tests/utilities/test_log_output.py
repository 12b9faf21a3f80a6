from __future__ import annotations

from tests.support import run_python

MESSAGE = "import logging, fulmen\nlogging.getLogger('fulmen.trainer').info('hello')"


def test_records_are_shown_where_the_program_sets_up_no_logging() -> None:
    assert run_python("-c", MESSAGE).stderr == "hello\n"


def test_program_that_sets_up_logging_gets_each_record_once() -> None:
    result = run_python("-c", f"import logging; logging.basicConfig(format='mine: %(message)s')\n{MESSAGE}")

    assert result.stderr == "mine: hello\n"


def test_program_may_set_up_logging_after_the_import() -> None:
    result = run_python("-c", f"import fulmen, logging; logging.basicConfig(format='mine: %(message)s')\n{MESSAGE}")

    assert result.stderr == "mine: hello\n"


def test_level_set_before_stays() -> None:
    result = run_python("-c", f"import logging; logging.getLogger('fulmen').setLevel('ERROR')\n{MESSAGE}")

    assert result.stderr == ""
