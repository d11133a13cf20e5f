# SPDX-License-Identifier: Apache-2.0
"""The engine in its own process: what the thread says, bit for bit; and everybody gets an answer, however it dies."""

import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digest_child import CONFIG, FOLDER, VOCABULARY, begin
from digest_executable import DigestExecutable
from letters import letters

from linnet.engine import (
    Abort,
    Control,
    Engine,
    EngineChild,
    EngineEvent,
    EngineProcess,
    EngineThread,
    EngineUnavailableError,
    Finished,
    Keep,
    SamplingParams,
    Submit,
    Tokens,
    Vocabulary,
)
from linnet.errors import ConfigError, UnsupportedError

pytestmark = pytest.mark.alone
PATIENCE_S = 30.0


class Outbox:
    """Collects events, with the time they came."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.ended_s: dict[int, float] = {}
        self.changed = threading.Condition()

    def __call__(self, events: tuple[EngineEvent, ...]) -> None:
        with self.changed:
            self.events += events
            self.ended_s |= {one.request_id: time.monotonic() for one in events if isinstance(one, Finished)}
            self.changed.notify_all()

    def finished(self) -> dict[int, Finished]:
        return {event.request_id: event for event in self.events if isinstance(event, Finished)}

    def wait(self, ids: Any, timeout_s: float = PATIENCE_S) -> dict[int, Finished]:
        with self.changed:
            assert self.changed.wait_for(lambda: set(ids) <= set(self.ended_s), timeout_s), self.finished()
        return self.finished()


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", FOLDER)


@pytest.fixture
def open_door() -> Iterator[Callable[..., tuple[EngineProcess, Outbox]]]:
    """(most_restarts, **told) -> a started door; every one is stopped at the end and leaves nothing behind."""
    before, doors = descriptors(), []

    def opened(
        most_restarts: int = 3, most_step_s: float | None = 300.0, vocabulary: Any = None, **told: Any
    ) -> tuple[EngineProcess, Outbox]:
        outbox, child = Outbox(), begin(**told)
        bounds: dict[str, Any] = {"most_restarts": most_restarts, "most_step_s": most_step_s, "vocabulary": vocabulary}
        door = EngineProcess(child, child.ready(), lambda: begin(**told), outbox, **bounds).start()
        doors.append(door)
        return door, outbox

    yield opened
    for door in doors:
        number = door.process_id
        door.stop()
        assert number is None or not alive(number)
        assert not door.healthy
    assert descriptors() == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def alive(number: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return "(zombie)" not in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.002)


def ask(request_id: int, max_tokens: int = 5, prompt: tuple[int, ...] = (1, 2, 3), **options: Any) -> Submit:
    params = SamplingParams(temperature=0.0)
    return Submit(
        **{"request_id": request_id, "prompt_token_ids": prompt, "params": params, "max_tokens": max_tokens} | options
    )


def workload() -> list[Submit]:
    """Requests that use what a Submit can say, some of them refused."""
    rng = random.Random(5)
    found = []
    for index in range(40):
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.8]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            logit_bias={3: -4.5} if rng.random() < 0.3 else {},
            logprobs=rng.choice([None, 0, 4]),
            prompt_logprobs=rng.choice([None, None, 2]),
        )
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 20)))
        found.append(
            ask(
                index,
                rng.randrange(1, 12),
                prompt,
                params=params,
                seed=rng.choice([rng.getrandbits(64), (1 << 64) - 1]),
                stop_token_ids=frozenset({7, 9}),
                cache_salt=bytes([rng.randrange(2)]),
                shared_tokens=rng.randrange(3) * 4,
                tenant=b"\xff",
                priority=rng.randrange(-2, 3),
                timeout_s=rng.choice([None, 100.0]),
            )
        )
    return [*found, ask(40, prompt=(999,)), ask(41, max_tokens=500), ask(42, timeout_s=0.0)]


def told(outbox: Outbox, request_id: int) -> list[Any]:
    """All that a request was told but how its tokens were cut, and times: comparable bit for bit."""
    tokens: list[int] = []
    logprobs: list[Any] = []
    end: Any = None
    for event in outbox.events:
        if event.request_id != request_id:
            continue
        assert end is None
        if isinstance(event, Tokens):
            tokens += event.token_ids
            logprobs += [
                (one.token_id, bits(one.logprob), [(i, bits(p)) for i, p in one.top]) for one in event.logprobs
            ]
        else:
            end = event
    scores = end.prompt_scores
    arrays = (
        None
        if scores is None
        else [
            None if (a := getattr(scores, name)) is None else (a.dtype.str, a.shape, a.tobytes())
            for name in scores.__dataclass_fields__
        ]
    )
    return [tokens, logprobs, end.reason, end.error, arrays]


def tokens_of(outbox: Outbox) -> int:
    return sum(isinstance(event, Tokens) for event in outbox.events)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_a_process_says_what_a_thread_says(open_door: Any) -> None:
    here = Outbox()
    thread = EngineThread(Engine(DigestExecutable(VOCABULARY, CONFIG.block_size), CONFIG, check=True), here).start()
    door, there = open_door()
    submits = workload()
    for one in (thread, door):
        for submit in submits:
            one.send(submit)
    ids = [submit.request_id for submit in submits]
    here.wait(ids)
    there.wait(ids)
    thread.stop()
    for request_id in ids:
        assert told(there, request_id) == told(here, request_id), request_id
    reasons = {event.reason for event in there.finished().values()}
    assert {"length", "error", "queue_timeout"} <= reasons
    eventually(lambda: door.counters.used_blocks == 0)
    assert door.counters.finished == thread.counters.finished
    assert door.idle


def test_what_is_kept_crosses_the_door_and_ends_with_the_process(open_door: Any) -> None:
    door, outbox = open_door()
    size = CONFIG.block_size
    prompt = tuple(range(3 * size))

    def serve(request_id: int, sequence: tuple[int, ...] = prompt) -> int:
        door.send(ask(request_id, max_tokens=1, prompt=sequence, cache_salt=b"mine"))
        return int(outbox.wait([request_id])[request_id].cached_tokens)

    serve(0)
    door.send(Keep(owner=b"talk", token_ids=prompt, cache_salt=b"mine"))
    eventually(lambda: door.counters.kept_blocks == 3)
    strangers = range(1, 2 + CONFIG.num_blocks // 4)
    for index in strangers:
        serve(index, tuple((index * 7 + place) % VOCABULARY for place in range(4 * size)))
    assert serve(1000, (*prompt, 1)) == 3 * size
    os.kill(door.process_id, signal.SIGKILL)
    eventually(lambda: door.restarts == 1)
    assert door.counters.kept_blocks == 0
    assert serve(1001, (*prompt, 1)) == 0, "cold, and nothing else"
    door.send(Keep(owner=b"talk", token_ids=prompt, cache_salt=b"mine"))
    eventually(lambda: door.counters.kept_blocks == 3)
    door.send(Keep(owner=b"talk"))
    eventually(lambda: door.counters.kept_blocks == 0)


def test_everybody_is_answered_at_once_when_it_is_killed_and_served_again_after(open_door: Any) -> None:
    door, outbox = open_door(most_restarts=5, delay_s=0.01)
    for kill in range(5):
        ids = range(100 * kill, 100 * kill + 12)
        for index in ids:
            door.send(ask(index, max_tokens=60, prompt=(index % VOCABULARY,)))
        generated = tokens_of(outbox)
        eventually(lambda generated=generated: tokens_of(outbox) > generated)  # type: ignore[misc]
        number = door.process_id
        assert number is not None
        killed_s = time.monotonic()
        os.kill(number, signal.SIGKILL)
        ends = outbox.wait(ids)
        assert max(outbox.ended_s[index] for index in ids) - killed_s < 2.0
        assert {ends[index].reason for index in ids} == {"error"}
        assert all(ends[index].error.http_status == 503 for index in ids)
        assert door.recovering
        assert not door.healthy
        assert door.idle
        with pytest.raises(EngineUnavailableError, match="started again"):
            door.send(ask(100 * kill + 50))
        eventually(lambda: door.healthy)
        assert not door.recovering
        assert not alive(number)
        assert door.process_id != number
        door.send(ask(100 * kill + 51))
        assert outbox.wait([100 * kill + 51])[100 * kill + 51].reason == "length"
        assert door.restarts == kill + 1
    eventually(lambda: door.counters.finished.get("length", 0) == 5)  # counts go on over restarts
    assert door.counters.used_blocks == 0


def test_too_many_restarts_are_a_failure_for_good(open_door: Any, caplog: pytest.LogCaptureFixture) -> None:
    door, _ = open_door(most_restarts=1)
    os.kill(door.process_id, signal.SIGKILL)
    eventually(lambda: door.restarts == 1)
    os.kill(door.process_id, signal.SIGKILL)
    eventually(lambda: door.error is not None)
    assert not door.recovering
    assert "killed by signal 9 (SIGKILL)" in str(door.error)
    assert "memory ran out" in str(door.error)
    assert "1 restarts in 10 minutes are the most" in str(door.error)
    with pytest.raises(EngineUnavailableError, match="not running"):
        door.send(ask(1))
    assert "it is started again (1 of 1 restarts" in caplog.text


def test_old_restarts_are_forgotten(monkeypatch: pytest.MonkeyPatch, open_door: Any) -> None:
    monkeypatch.setattr("linnet.engine.process.WINDOW_S", 0.0)
    door, _ = open_door(most_restarts=1)
    for count in (1, 2):
        os.kill(door.process_id, signal.SIGKILL)
        eventually(lambda count=count: door.restarts == count and door.healthy)  # type: ignore[misc]


def test_a_backend_that_raises_is_restarted_as_well(open_door: Any, capfd: pytest.CaptureFixture[str]) -> None:
    door, outbox = open_door(break_token=13, delay_s=0.005)
    door.send(ask(0, max_tokens=60))
    eventually(lambda: bool(outbox.events))
    door.send(ask(1, prompt=(13,)))
    ends = outbox.wait([0, 1])
    assert {end.reason for end in ends.values()} == {"error"}
    assert all(end.error is not None and end.error.code == "engine_lost" for end in ends.values())
    eventually(lambda: door.healthy and door.restarts == 1)
    door.send(ask(2))
    assert outbox.wait([2])[2].reason == "length"
    text = capfd.readouterr().err
    assert "RuntimeError in execute (digest_child.py" in text
    assert "the kernel broke" not in text


def test_a_process_that_ends_while_it_drains_is_not_started_again(open_door: Any) -> None:
    door, outbox = open_door(delay_s=0.05)
    door.send(ask(0, max_tokens=60))
    eventually(lambda: bool(outbox.events))
    door.send(Control("drain"))
    with pytest.raises(EngineUnavailableError, match="draining"):
        door.send(ask(1))
    os.kill(door.process_id, signal.SIGKILL)
    assert outbox.wait([0])[0].reason == "error"
    eventually(lambda: door.error is not None)
    assert door.restarts == 0


def test_stop_answers_everybody_and_ends_the_process(open_door: Any) -> None:
    door, outbox = open_door(delay_s=0.01)
    for index in range(30):
        door.send(ask(index, max_tokens=50))
    door.stop()
    assert {end.reason for end in outbox.wait(range(30)).values()} <= {"abort", "error"}  # 22 found the queue full
    assert door.error is None
    with pytest.raises(EngineUnavailableError):
        door.send(ask(99))


def test_aborts_reach_it(open_door: Any) -> None:
    door, outbox = open_door(delay_s=0.01)
    door.send(ask(0, max_tokens=60))
    eventually(lambda: bool(outbox.events))
    door.send(Abort(0))
    assert outbox.wait([0])[0].reason == "abort"
    door.send(ask(1, max_tokens=60))
    door.send(Control("abort_all"))
    assert outbox.wait([1])[1].reason == "abort"


def test_a_step_that_does_not_end_is_killed(open_door: Any) -> None:
    door, outbox = open_door(hang_token=17)
    door.send(ask(0, prompt=(17,)))
    time.sleep(0.3)  # until the step has begun, which nobody hears of
    number = door.process_id
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="was killed"):
        door.stop(0.2)
    assert time.monotonic() - began_s < 5.0
    assert outbox.wait([0])[0].reason == "abort"
    assert not alive(number)


def test_stop_ends_a_restart(open_door: Any) -> None:
    door, _ = open_door()
    os.kill(door.process_id, signal.SIGKILL)
    eventually(lambda: door.recovering)
    began_s = time.monotonic()
    door.stop(10.0)
    assert time.monotonic() - began_s < 5.0
    assert not door.recovering
    assert door.error is None


def test_a_process_that_stands_still_is_started_again(
    open_door: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("linnet.engine.watch.SILENT_BEATS", 3)
    door, outbox = open_door(delay_s=0.01)
    door.send(ask(0, max_tokens=60))
    eventually(lambda: bool(outbox.events))
    number = door.process_id
    os.kill(number, signal.SIGSTOP)
    stopped_s = time.monotonic()
    ends = outbox.wait([0])
    assert outbox.ended_s[0] - stopped_s < 3 + 2 + 2.0
    assert ends[0].error.code == "engine_lost"
    eventually(lambda: door.healthy and door.restarts == 1)
    assert not alive(number)
    door.send(ask(1))
    assert outbox.wait([1])[1].reason == "length"
    assert "said nothing for 3 s and was killed; it is started again" in caplog.text


def test_a_step_that_does_not_end_is_the_end_of_its_process(open_door: Any, caplog: pytest.LogCaptureFixture) -> None:
    door, outbox = open_door(most_step_s=1.5, hang_token=17)
    door.send(ask(0, prompt=(17,)))
    assert outbox.wait([0])[0].error.code == "engine_lost"
    eventually(lambda: door.healthy and door.restarts == 1)
    assert "computed one step for more than 1.5 s and was killed" in caplog.text


def test_steps_that_are_long_are_waited_for(open_door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats meanwhile, and when it has nothing to do."""
    monkeypatch.setattr("linnet.engine.watch.SILENT_BEATS", 2)
    door, outbox = open_door(delay_s=4.0)
    door.send(ask(0, max_tokens=1))
    assert outbox.wait([0])[0].reason == "length"
    time.sleep(3.5)
    assert (door.healthy, door.restarts) == (True, 0)


def test_nothing_is_watched_where_nothing_is_asked_for(open_door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linnet.engine.watch.SILENT_BEATS", 1)
    door, outbox = open_door(most_step_s=None)
    os.kill(door.process_id, signal.SIGSTOP)
    time.sleep(3.5)
    os.kill(door.process_id, signal.SIGCONT)
    door.send(ask(0))
    assert outbox.wait([0])[0].reason == "length"
    assert door.restarts == 0


def test_signals_of_a_terminal_are_the_parents_business(open_door: Any) -> None:
    door, outbox = open_door()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(door.process_id, number)
    door.send(ask(0))
    assert outbox.wait([0])[0].reason == "length"
    assert os.getsid(door.process_id) != os.getsid(0)


def test_another_engine_is_not_taken_for_the_same(open_door: Any) -> None:
    outbox, child = Outbox(), begin()
    door = EngineProcess(child, child.ready(), lambda: begin(salt=1), outbox, most_restarts=1).start()
    os.kill(child.process.pid, signal.SIGKILL)
    eventually(lambda: door.error is not None)
    assert "its files have changed" in str(door.error)
    door.stop()


def test_a_refusal_comes_back_as_the_error_it_was() -> None:
    with pytest.raises(UnsupportedError, match="no\n  - one\n  - two") as caught:
        begin(first="refuse").ready()
    assert caught.value.reasons == ("one", "two")
    assert caught.value.settings == ("kv_cache",)


@pytest.mark.parametrize(
    "first", ["ffffffff", "0300000000", "04000000deadbeef", "0500000093a4737465", "01000000c0", "05000000"]
)
def test_a_child_that_talks_nonsense_is_ended(first: str) -> None:
    child = begin(first=first)
    if first in ("0300000000", "0500000093a4737465", "05000000"):  # the rest never comes
        threading.Timer(0.5, child.process.kill).start()
    with pytest.raises(EngineUnavailableError):
        child.ready()
    child.end()
    assert not alive(child.process.pid)


def test_frames_that_nobody_understands_end_the_engine_cleanly(capfd: pytest.CaptureFixture[str]) -> None:
    good = EngineChild.__new__(EngineChild)
    rng = random.Random(3)
    for trial in range(6):
        child = begin()
        child.ready()
        good = child.channel.encode(("submit", {"request_id": 1}))
        whole = bytes(child.channel.encode(("control", "drain")))
        bad = [
            rng.randbytes(rng.randrange(1, 40)),
            bytes(good),
            struct.pack("<I", 1 << 31),
            whole[:-2],
            struct.pack("<I", 3) + b"\xc1\xc1\xc1",
            bytes(child.channel.encode(("control", "self-destruct"))),
        ][trial]
        child.process.connection.sendall(bad)
        child.channel.end_sending()
        assert child.process.process.wait(PATIENCE_S) in (0, 1)
        child.end()
    text = capfd.readouterr().err
    assert "a frame of another form" in text
    assert "a frame of 2147483648 bytes" in text
    assert "Traceback" not in text


def test_grammars_are_compiled_there_also_in_the_next_process(open_door: Any) -> None:
    words = [b"ab", b"ac", b"b"]
    asked: list[int] = []

    def vocabulary() -> Vocabulary:
        asked.append(1)
        return letters(61)

    door, outbox = open_door(vocabulary=vocabulary)
    grammar = 'start: "ab" | "ac" | "b"'
    tokens = letters(61).tokens()
    for number in (1, 2):
        door.send(replace(ask(10 * number, 30), grammar=grammar))
        door.send(replace(ask(10 * number + 1, 30), grammar="start: no_such_rule"))
        door.send(ask(10 * number + 2))
        ends = outbox.wait([10 * number, 10 * number + 1, 10 * number + 2])
        assert ends[10 * number].reason == "stop"
        said = b"".join(tokens[one] for one in told(outbox, 10 * number)[0])
        assert said in words
        error = ends[10 * number + 1].error
        assert error is not None
        assert (error.http_status, error.param) == (400, "structured_outputs")
        assert ends[10 * number + 2].reason == "length"
        if number == 1:
            os.kill(door.process_id, signal.SIGKILL)
            eventually(lambda: door.restarts == 1 and door.healthy)
    assert len(asked) == 2  # once for each process


def test_a_door_without_a_vocabulary_takes_no_grammar(open_door: Any) -> None:
    door, outbox = open_door()
    with pytest.raises(ConfigError, match="without a vocabulary"):
        door.send(replace(ask(0), grammar="start: /a/"))
    door.send(ask(1))
    assert outbox.wait([1])[1].reason == "length"
    assert set(outbox.finished()) == {1}


def test_senders_are_never_held_up(open_door: Any) -> None:
    """A process that reads nothing: its socket fills, and sending goes on."""
    door, outbox = open_door()
    os.kill(door.process_id, signal.SIGSTOP)
    began_s = time.monotonic()
    for index in range(40):
        door.send(ask(index, prompt=tuple(range(60)) * 500))
    assert time.monotonic() - began_s < 5.0
    os.kill(door.process_id, signal.SIGCONT)
    assert {end.reason for end in outbox.wait(range(40)).values()} == {"error"}  # too long


def test_numbers_of_numpy_arrive_as_numbers(open_door: Any) -> None:
    door, outbox = open_door()
    door.send(ask(0, prompt=tuple(np.arange(3))))  # type: ignore[arg-type]
    assert outbox.wait([0])[0].reason == "length"
