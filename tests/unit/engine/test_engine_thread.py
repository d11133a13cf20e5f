# SPDX-License-Identifier: Apache-2.0
"""The thread: everybody gets an answer, health is truthful, drain and stop are clean."""

import random
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from digest_executable import DigestExecutable

from linnet.engine import (
    Abort,
    Control,
    Engine,
    EngineEvent,
    EngineThread,
    EngineUnavailableError,
    Finished,
    SamplingParams,
    Submit,
    Tokens,
)
from linnet.scheduler import SchedulerConfig

pytestmark = pytest.mark.alone
CONFIG = SchedulerConfig(num_blocks=64, max_model_len=64, block_size=4, token_budget=32, max_sequences=8)


class Outbox:
    """Collects events; waits for ends."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.changed = threading.Condition()

    def __call__(self, events: tuple[EngineEvent, ...]) -> None:
        with self.changed:
            self.events += events
            self.changed.notify_all()

    def finished(self) -> dict[int, Finished]:
        return {event.request_id: event for event in self.events if isinstance(event, Finished)}

    def wait(self, count: int, timeout_s: float = 20.0) -> dict[int, Finished]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.finished()) >= count, timeout_s), self.finished()
        return self.finished()


class Slow(DigestExecutable):
    def execute(self, batch: object, states: object) -> None:
        time.sleep(0.002)
        super().execute(batch, states)  # type: ignore[arg-type]


def make(executable: DigestExecutable | None = None) -> tuple[EngineThread, Outbox]:
    outbox = Outbox()
    engine = Engine(executable or DigestExecutable(61, 4), CONFIG, check=True)
    return EngineThread(engine, outbox).start(), outbox


def ask(request_id: int, max_tokens: int = 5, prompt: tuple[int, ...] = (1, 2, 3), **options: object) -> Submit:
    params = SamplingParams(temperature=0.0)
    return Submit(
        request_id=request_id, prompt_token_ids=prompt, params=params, max_tokens=max_tokens, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_requests_are_answered_and_the_thread_ends() -> None:
    thread, outbox = make()
    for index in range(20):
        thread.send(ask(index, prompt=(index, 2)))
    ends = outbox.wait(20)
    assert {event.reason for event in ends.values()} == {"length"}
    counts = Counter(event.request_id for event in outbox.events if isinstance(event, Tokens))
    assert set(counts.values()) == {5}
    assert thread.healthy
    thread.stop()
    thread.stop()
    assert not thread.healthy
    assert thread.counters.used_blocks == 0
    with pytest.raises(EngineUnavailableError):
        thread.send(ask(99))


def test_bad_requests_are_answered_with_an_error() -> None:
    thread, outbox = make()
    with thread.__class__(Engine(DigestExecutable(61, 4), CONFIG), outbox) as other:
        other.send(ask(0, prompt=(999,)))
        other.send(ask(1))
        ends = outbox.wait(2)
    assert ends[0].reason == "error"
    assert ends[0].error is not None
    assert (ends[0].error.code, ends[0].error.http_status, ends[0].error.param) == ("config_error", 400, "prompt")
    assert ends[1].reason == "length"
    thread.stop()


def test_an_exception_in_the_loop_reaches_everybody() -> None:
    executable = Slow(61, 4)
    thread, outbox = make(executable)
    for index in range(4):
        thread.send(ask(index, max_tokens=50))
    while not outbox.events:
        time.sleep(0.001)
    executable.break_after = executable.steps
    started = time.monotonic()
    ends = outbox.wait(4)
    assert time.monotonic() - started < 2
    assert {event.reason for event in ends.values()} == {"error"}
    assert all(event.error is not None and event.error.code == "engine_lost" for event in ends.values())
    thread.stop()
    assert not thread.healthy
    assert isinstance(thread.error, RuntimeError)
    with pytest.raises(EngineUnavailableError):
        thread.send(ask(9))
    with pytest.raises(EngineUnavailableError):
        thread.send(Control("drain"))
    assert thread.idle


def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    thread, outbox = make(Slow(61, 4))
    for index in range(3):
        thread.send(ask(index, max_tokens=20))
    thread.send(Control("drain"))
    with pytest.raises(EngineUnavailableError, match="draining"):
        thread.send(ask(7))
    assert {event.reason for event in outbox.wait(3).values()} == {"length"}
    assert thread.error is None
    thread.stop()


def test_a_short_drain_aborts_the_rest() -> None:
    thread, outbox = make(Slow(61, 4))
    thread.send(ask(0, max_tokens=60))
    thread.send(Control("drain"))
    time.sleep(0.02)
    thread.send(Control("abort_all"))
    assert outbox.wait(1)[0].reason == "abort"
    thread.stop()
    assert thread.counters.used_blocks == 0


def test_stop_answers_the_queue() -> None:
    thread, outbox = make(Slow(61, 4))
    for index in range(30):
        thread.send(ask(index, max_tokens=50))
    thread.stop()
    ends = outbox.finished()
    assert set(ends) == set(range(30))
    assert "abort" in {event.reason for event in ends.values()}


def test_a_listener_that_fails_takes_the_engine_down_truthfully() -> None:
    def refuse(events: tuple[EngineEvent, ...]) -> None:
        raise ValueError("the outbox is gone")

    thread = EngineThread(Engine(DigestExecutable(61, 4), CONFIG), refuse).start()
    thread.send(ask(0))
    deadline = time.monotonic() + 10
    while thread.healthy and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not thread.healthy
    assert isinstance(thread.error, ValueError)
    thread.stop()


def test_aborts_at_random_moments_lose_nothing() -> None:
    thread, outbox = make(Slow(61, 4))
    rng = random.Random(11)
    for index in range(60):
        thread.send(ask(index, max_tokens=rng.randrange(1, 12), prompt=tuple(range(rng.randrange(1, 20)))))
        if rng.random() < 0.4:
            thread.send(Abort(rng.randrange(index + 1)))
        if rng.random() < 0.1:
            thread.send(Control("forget_prefixes"))
        if rng.random() < 0.3:
            time.sleep(0.003)
    outbox.wait(60)
    seen: set[int] = set()
    for event in outbox.events:
        assert event.request_id not in seen
        if isinstance(event, Finished):
            seen.add(event.request_id)
    thread.stop()
    assert thread.counters.used_blocks == 0


def test_senders_from_many_threads() -> None:
    thread, outbox = make()

    def send(first: int) -> None:
        for index in range(20):
            thread.send(ask(first + index, prompt=(first % 61, index)))

    senders = [threading.Thread(target=send, args=(100 * number,)) for number in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(outbox.wait(80)) == 80
    thread.stop()


def test_a_crowded_queue_answers_at_once() -> None:
    outbox = Outbox()
    config = replace(CONFIG, max_sequences=1, max_waiting_requests=2)
    with EngineThread(Engine(Slow(61, 4), config), outbox) as thread:
        for index in range(10):
            thread.send(ask(index, max_tokens=30))
        ends = outbox.wait(7)
        assert {event.error.code for event in ends.values() if event.error} == {"capacity_error"}


def test_waiting_for_a_step_to_end_counts_as_queueing() -> None:
    class Gated(DigestExecutable):
        gate = threading.Event()

        def execute(self, batch: object, states: object) -> None:
            assert self.gate.wait(20)
            super().execute(batch, states)  # type: ignore[arg-type]

    executable = Gated(61, 4)
    thread, outbox = make(executable)
    thread.send(ask(0, max_tokens=1))
    while not executable_busy(thread):
        time.sleep(0.001)
    assert not thread.idle
    thread.send(ask(1, max_tokens=1))
    time.sleep(0.1)
    executable.gate.set()
    waited = {key: event.queued_s for key, event in outbox.wait(2).items()}
    thread.stop()
    assert waited[0] is not None
    assert waited[1] is not None
    assert waited[1] >= 0.1 > waited[0]
    assert thread.idle


def test_an_end_does_not_wait_for_a_step_that_does_not_end() -> None:
    release = threading.Event()

    class Stuck(DigestExecutable):
        def execute(self, batch: object, states: object) -> None:
            release.wait(20)
            super().execute(batch, states)  # type: ignore[arg-type]

    thread, _ = make(Stuck(61, 4))
    thread.send(ask(0))
    while not executable_busy(thread):
        time.sleep(0.001)
    began_s = time.monotonic()
    thread.send(Control("drain"))
    thread.send(Control("abort_all"))
    assert not thread.idle
    with pytest.raises(TimeoutError):
        thread.stop(0.05)
    assert time.monotonic() - began_s < 5.0
    release.set()
    thread.stop()


def executable_busy(thread: EngineThread) -> bool:
    """Whether the thread computes a step."""
    return thread._engine.stepping
