from __future__ import annotations

import os
import signal

from fulmen.trainer.signals import Signals


def test_sigterm_can_be_the_signal_that_asks_for_a_requeue() -> None:
    before, signals = signal.getsignal(signal.SIGTERM), Signals()

    signals.begin(requeue_signal=signal.SIGTERM)
    signals.install()
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()

    assert signals.received == signals.requeue_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
