import pytest

from fulmen.callbacks.progress import live
from fulmen.callbacks.progress.live import RefreshPace


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "monotonic", clock)
    return clock


def test_no_redraw_within_a_tenth_of_a_second(clock):
    pace = RefreshPace(1, shortest_s=0.1, longest_s=1.0)
    clock.now_s += 0.09

    assert not pace.due(50)


def test_redraw_after_the_given_number_of_batches(clock):
    pace = RefreshPace(5, shortest_s=0.1, longest_s=1.0)
    clock.now_s += 0.2

    assert [pace.due(done) for done in (1, 4, 5, 6)] == [False, False, True, True]


def test_redraw_once_a_second_however_few_the_batches(clock):
    pace = RefreshPace(100, shortest_s=0.1, longest_s=1.0)
    clock.now_s += 1.0

    assert pace.due(1)


def test_slow_terminal_is_drawn_to_less_often(clock):
    pace = RefreshPace(1, shortest_s=0.1, longest_s=1.0)
    started_s = clock.now_s
    clock.now_s += 0.1
    pace.drawn(1, started_s)
    clock.now_s += 4.9

    assert not pace.due(2)
    clock.now_s += 0.2
    assert pace.due(2)
