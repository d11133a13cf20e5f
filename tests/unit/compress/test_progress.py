# SPDX-License-Identifier: Apache-2.0
"""Progress: thousandths, an ETA from this process's own work, cancellation."""

import os
import signal

import pytest

from linnet.compress.progress import CancelToken, Interrupted, Meter, cancel_on_signals


def test_eta_counts_only_what_this_process_did():
    now, events = [0.0], []
    meter = Meter(events.append, CancelToken(), {"fit": 100.0}, "resume", clock=lambda: now[0])
    meter.skip({"fit": 50.0})
    meter.advance("compress", "a")
    now[0] = 2.0
    meter.advance("compress", "a", "fit", 10.0)
    assert [(event.stage, event.done, event.total) for event in events] == [("compress", d, 100.0) for d in (50, 60)]
    assert events[0].eta_s is None
    assert events[1].eta_s == pytest.approx(8.0)
    assert events[1].layer == "a"
    assert events[1].peak_memory_bytes > 1 << 20


def test_every_kind_of_work_has_its_own_speed():
    """Ten alike blocks on a machine where one kind takes five times what was predicted and another a third."""
    now, predicted = [0.0], []
    slowness = {"rows": 5.0, "fit": 1 / 3, "write": 1.0}
    units = {"rows": 2.0, "fit": 3.0, "write": 0.2}
    work = {kind: 10 * amount for kind, amount in units.items()}
    whole = sum(slowness[kind] * amount for kind, amount in work.items())
    meter = Meter(
        lambda event: predicted.append((event.done / event.total, now[0], event.eta_s)),
        CancelToken(),
        work,
        "resume",
        clock=lambda: now[0],
    )
    for _ in range(10):
        for kind, amount in units.items():
            for _ in range(8):
                now[0] += slowness[kind] * amount / 8
                meter.advance("compress", "a", kind, amount / 8)
    assert now[0] == pytest.approx(whole)
    late = [elapsed + eta for share, elapsed, eta in predicted if share >= 0.1]
    assert len(late) > 200
    assert all(abs(guess - whole) < 0.3 * whole for guess in late)
    assert predicted[-1][2] == pytest.approx(0.0, abs=1e-6)


def test_a_cancelled_token_interrupts_and_says_how_to_resume():
    token = CancelToken()
    meter = Meter(None, token, {"fit": 1.0}, "run it again")
    meter.advance("compress", "a", "fit", 0.5)
    token.cancel("Ctrl-C")
    with pytest.raises(Interrupted, match="stopped by Ctrl-C at b; run it again"):
        meter.advance("compress", "b", "fit", 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_cancel_and_handlers_come_back(number):
    before, token = signal.getsignal(number), CancelToken()
    with cancel_on_signals(token):
        os.kill(os.getpid(), number)
        assert token.cancelled
        assert token.reason == number.name
    assert signal.getsignal(number) is before
