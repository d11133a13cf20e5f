# SPDX-License-Identifier: Apache-2.0
"""Progress: thousandths, an ETA from this process's own work, cancellation."""

import os
import signal

import pytest

from linnet.compress.progress import CancelToken, Interrupted, Meter, cancel_on_signals


def test_eta_counts_only_what_this_process_did():
    now, events = [0.0], []
    meter = Meter(events.append, CancelToken(), 100.0, "resume", clock=lambda: now[0])
    meter.skip(50.0)
    meter.advance("compress", "a")
    now[0] = 2.0
    meter.advance("compress", "a", 10.0)
    assert [(event.stage, event.done, event.total) for event in events] == [("compress", d, 100.0) for d in (50, 60)]
    assert events[0].eta_s is None
    assert events[1].eta_s == pytest.approx(8.0)
    assert events[1].layer == "a"
    assert events[1].peak_memory_bytes > 1 << 20


def test_a_cancelled_token_interrupts_and_says_how_to_resume():
    token = CancelToken()
    meter = Meter(None, token, 1.0, "run it again")
    meter.advance("compress", "a", 0.5)
    token.cancel("Ctrl-C")
    with pytest.raises(Interrupted, match="stopped by Ctrl-C at b; run it again"):
        meter.advance("compress", "b", 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_cancel_and_handlers_come_back(number):
    before, token = signal.getsignal(number), CancelToken()
    with cancel_on_signals(token):
        os.kill(os.getpid(), number)
        assert token.cancelled
        assert token.reason == number.name
    assert signal.getsignal(number) is before
