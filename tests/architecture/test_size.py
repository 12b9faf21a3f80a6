from __future__ import annotations

import pytest

from tests.architecture.sources import Source, sources

MOST_CODE_LINES = 500
# file -> reason why it may be longer
EXCEPTIONS: dict[str, str] = {}


@pytest.mark.parametrize("source", sources(), ids=str)
def test_file_is_short_enough_to_read(source: Source) -> None:
    if str(source) in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[str(source)])

    assert source.code_lines() <= MOST_CODE_LINES


def test_exceptions_are_still_needed() -> None:
    lengths = {str(source): source.code_lines() for source in sources()}

    assert [name for name in EXCEPTIONS if lengths.get(name, 0) <= MOST_CODE_LINES] == []
