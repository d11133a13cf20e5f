# SPDX-License-Identifier: Apache-2.0
"""Laws of the engine with adapters: what a request yields depends on it and its adapter alone, bit for bit.

Requests of three adapters and of none run together: in batches, in chunks, preempted, from the prefix cache (twice, on
one engine), forked, as beams. Each must come out as it does alone, and one without an adapter as on a model that knows
of none. LINNET_LAW_TRIALS (default 4) and LINNET_LAW_SEED as in test_engine_laws.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_workload import Result, random_submits, run
from test_engine_laws import quantised
from tiny_adapter import linears_of, write_adapter
from tiny_llama import CONTEXT, write_tiny_llama

from linnet.backends.select import choose_backend
from linnet.backends.settings import CpuSettings
from linnet.engine import (
    AdapterFacts,
    Control,
    Engine,
    Keep,
    LoadAdapter,
    SamplingParams,
    Submit,
    UnknownAdapterError,
    UnloadAdapter,
    limits_of,
    open_adapter,
)
from linnet.errors import ConfigError
from linnet.models import load_model
from linnet.program.adapters import adapter_sites, add_adapters
from linnet.scheduler import SchedulerConfig

TRIALS = int(os.environ.get("LINNET_LAW_TRIALS", "4"))
SEED = int(os.environ.get("LINNET_LAW_SEED", "20261130"))
LONGEST = 36
WIDEST = SchedulerConfig(
    num_blocks=256, max_model_len=CONTEXT, block_size=4, token_budget=96, max_sequences=16, max_output_rows=96
)
ALONE = replace(WIDEST, prefix_cache=False)
CASES = ("exact dense", "fast dense", "fast W4A16-g32", "fast W8A16")


class Machine:
    """A model with and without places for adapters, and three of these."""

    def __init__(self, case: str, directory: Path) -> None:
        policy, weights = case.split(" ")
        dense = write_tiny_llama(directory / "dense", dtype="float32" if policy == "exact" else "bfloat16")
        path = dense if weights == "dense" else quantised(dense, directory / weights, weights)
        source = load_model(path)
        shapes = linears_of(dense)
        some = {name: shape for name, shape in shapes.items() if name.endswith(("q_proj", "v_proj", "down_proj"))}
        self.paths = [
            write_adapter(directory / "one", shapes, rank=16, alpha=16, seed=1),
            write_adapter(directory / "two", some, rank=3, alpha=9, seed=2, dtype=ml_dtypes.bfloat16),
            write_adapter(directory / "three", shapes, rank=5, alpha=5, seed=3, dtype=np.float16),
        ]
        self.facts = AdapterFacts(most=4, rank=16, sites=adapter_sites(source.program))
        self.vocabulary = source.spec.vocabulary_size
        adapted = replace(source, program=add_adapters(source.program))
        backend = choose_backend(CpuSettings(2))
        self.plain = backend.prepare(source, policy, limits_of(WIDEST))  # type: ignore[arg-type]
        self.executable = backend.prepare(adapted, policy, limits_of(WIDEST))  # type: ignore[arg-type]
        self.digests = [open_adapter(path, self.facts).digest for path in self.paths]

    def load(self, number: int, which: int | None = None) -> LoadAdapter:
        which = number if which is None else which
        return LoadAdapter(adapter=number, path=str(self.paths[which]), digest=self.digests[which])

    def engine(self, config: SchedulerConfig) -> Engine:
        engine = Engine(self.executable, config, check=True, adapters=self.facts)
        for number in range(len(self.paths)):
            engine.handle(self.load(number))
        return loaded(engine)


def loaded(engine: Engine) -> Engine:
    """The same, when nothing is being loaded any more."""
    while any(map(engine.adapters.is_coming, range(9))):
        engine.adapters.wait(60.0)
        engine.step()
    return engine


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Machine]:
    made: dict[str, Machine] = {}

    def machine(case: str) -> Machine:
        if case not in made:
            made[case] = Machine(case, tmp_path_factory.mktemp("adapters"))
        return made[case]

    return machine


def alone(machine: Machine, *submits: Submit) -> dict[int, Result]:
    return run(machine.engine(ALONE), submits)


@pytest.mark.parametrize("case", CASES)
def test_requests_depend_on_themselves_and_their_adapter_alone(case: str, machines: Any) -> None:
    machine = machines(case)
    for trial in range(TRIALS):
        rng = random.Random(f"{SEED} {case} {trial}")
        submits = [
            replace(submit, adapter=rng.choice((None, 0, 1, 2)))
            for submit in random_submits(rng, machine.vocabulary, rng.randrange(3, 8), LONGEST)
        ]
        expected = {submit.request_id: alone(machine, submit)[submit.request_id] for submit in submits}
        config = replace(
            WIDEST,
            token_budget=rng.choice((5, 17, 96)),
            max_chunk_tokens=rng.choice((None, 1, 4, 7)),
            preempt_every=rng.choice((None, 1, 3)),
            max_sequences=rng.choice((2, 5, 16)),
            num_blocks=rng.choice((12, 40, 256)),
            prefix_cache=rng.random() < 0.7,
        )
        engine = machine.engine(config)
        for turn in range(2):
            ids = {submit.request_id + 1000 * turn: submit.request_id for submit in submits}
            renamed = [replace(submit, request_id=submit.request_id + 1000 * turn) for submit in submits]
            rng.shuffle(renamed)
            found = run(engine, renamed, arrivals=[rng.randrange(6) for _ in renamed])
            for request_id, original in ids.items():
                assert found[request_id] == expected[original], f"seed {SEED}, case {case}, trial {trial}, turn {turn}"


@pytest.mark.parametrize("case", CASES)
def test_without_an_adapter_it_is_the_model_alone(case: str, machines: Any) -> None:
    machine, rng = machines(case), random.Random(SEED)
    submits = random_submits(rng, machine.vocabulary, 8, LONGEST)
    others = [replace(one, request_id=one.request_id + 500, adapter=one.request_id % 3) for one in submits]
    found = run(machine.engine(WIDEST), [*submits, *others])
    expected = run(Engine(machine.plain, ALONE), submits)
    assert {submit.request_id: found[submit.request_id] for submit in submits} == expected
    assert any(found[one.request_id] != found[one.request_id - 500] for one in others)


def test_samples_and_beams_share_a_prompt_and_its_adapter(machines: Any) -> None:
    machine, rng = machines("exact dense"), random.Random(SEED)
    prompt = tuple(rng.randrange(machine.vocabulary) for _ in range(21))
    params = SamplingParams(temperature=1.0, logprobs=2)
    searching = SamplingParams(use_beam_search=True, n=3, logprobs=9)
    submits: list[Submit] = []
    for adapter in (None, 0, 1):
        first = len(submits)
        for own, count in ((params, 3), (searching, 3)):
            for index in range(count):
                submits.append(
                    Submit(
                        request_id=len(submits), prompt_token_ids=prompt, params=own, max_tokens=6, seed=index,
                        adapter=adapter, fork_of=None if index == 0 else len(submits) - index,
                    )
                )  # fmt: skip
        assert len(submits) == first + 6
    together = run(machine.engine(replace(WIDEST, max_chunk_tokens=5)), submits)
    for start in range(0, len(submits), 3):
        group = submits[start : start + 3]
        assert {one.request_id: together[one.request_id] for one in group} == alone(machine, *group)


def test_the_cache_tells_adapters_apart_and_knows_equal_ones(machines: Any) -> None:
    """The same adapter under another number finds what the first has computed; another one, or none, does not."""
    machine, rng = machines("exact dense"), random.Random(SEED)
    engine = machine.engine(WIDEST)
    engine.handle(machine.load(7, which=0))
    prompt = tuple(rng.randrange(machine.vocabulary) for _ in range(24))
    cached = {}
    for request_id, adapter in enumerate((0, 1, None, 7, 0)):
        engine.submit(
            Submit(
                request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(), max_tokens=2, adapter=adapter
            )
        )
        while engine.has_work:
            for event in engine.step():
                if hasattr(event, "cached_tokens"):
                    cached[request_id] = event.cached_tokens
    assert [count > 0 for count in cached.values()] == [False, False, False, True, True]
    engine.handle(Keep(owner=b"me", token_ids=prompt, adapter=1))
    assert engine.counters().kept_blocks == len(prompt) // WIDEST.block_size


def test_an_adapter_that_leaves_ends_nobody(machines: Any) -> None:
    machine, rng = machines("exact dense"), random.Random(SEED)
    engine = machine.engine(WIDEST)
    prompt = tuple(rng.randrange(machine.vocabulary) for _ in range(9))
    submit = Submit(
        request_id=1, prompt_token_ids=prompt, params=SamplingParams(temperature=0.0), max_tokens=8, adapter=1
    )
    expected = alone(machine, submit)[1]
    engine.submit(submit)
    events = [*engine.step(), *engine.step()]
    engine.handle(UnloadAdapter(1))
    with pytest.raises(UnknownAdapterError, match="not loaded"):
        engine.submit(replace(submit, request_id=2))
    engine.handle(machine.load(5, which=2))  # takes no place of one that is in use
    assert engine.adapters.in_use == (1,)
    while engine.has_work:
        events += engine.step()
    found = Result()
    for event in events:
        found.take(event)
    assert found == expected
    assert engine.adapters.in_use == ()


def test_another_may_be_loaded_before_an_aborted_request_has_ended(machines: Any) -> None:
    machine, rng = machines("exact dense"), random.Random(SEED)
    engine = machine.engine(WIDEST)
    engine.handle(machine.load(3, which=1))
    prompt = tuple(rng.randrange(machine.vocabulary) for _ in range(9))
    submit = Submit(
        request_id=1, prompt_token_ids=prompt, params=SamplingParams(temperature=0.0), max_tokens=8, adapter=1
    )
    again = replace(submit, request_id=2, adapter=4)

    def swap(step: int) -> Iterator[int]:
        if step == 2:
            yield 1
            engine.handle(UnloadAdapter(1))
            engine.handle(machine.load(4, which=2))

    found = run(engine, [submit, again], arrivals=[0, 3], between=swap)
    assert found[1].reason == "abort"
    assert found[2] == alone(machine, replace(again, adapter=2))[2]
    assert engine.adapters.in_use == ()


def test_what_cannot_be_loaded_is_not_there_and_the_log_says_why(
    machines: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = machines("exact dense")
    engine = machine.engine(WIDEST)
    submit = Submit(request_id=1, prompt_token_ids=(3, 4), params=SamplingParams(), max_tokens=1, adapter=3)
    for message, words in (
        (LoadAdapter(adapter=3, path=str(tmp_path / "nowhere"), digest=b""), "no such directory"),
        (LoadAdapter(adapter=3, path=str(machine.paths[0]), digest=b"other"), "has changed"),
    ):
        engine.handle(message)
        loaded(engine)
        with pytest.raises(UnknownAdapterError, match="not loaded") as caught:
            engine.submit(submit)
        assert words in caplog.messages[-1]
        assert message.path not in str(caught.value)
    wide = write_adapter(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (32, 32)}, rank=17)
    engine.handle(LoadAdapter(adapter=3, path=str(wide), digest=b""))
    loaded(engine)
    with pytest.raises(UnknownAdapterError):
        engine.submit(submit)
    assert "rank 17" in caplog.messages[-1]
    assert not engine.has_work


def test_no_memory_for_an_adapter_is_not_the_end(
    machines: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = machines("exact dense")
    engine = Engine(machine.executable, WIDEST, check=True, adapters=machine.facts)

    def full(terms: Any) -> object:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(machine.executable, "prepare_adapter", full)
        engine.handle(machine.load(0))
        loaded(engine)
    assert "not enough memory" in caplog.text
    submit = Submit(
        request_id=1, prompt_token_ids=(1, 2, 3), params=SamplingParams(temperature=0.0), max_tokens=2, adapter=0
    )
    with pytest.raises(UnknownAdapterError):
        engine.submit(submit)
    engine.handle(machine.load(0))
    engine.submit(submit)
    while engine.has_work:
        engine.step()


class Slow:
    """An executable whose adapters are ready when ``go`` is set."""

    def __init__(self, executable: Any, patch: pytest.MonkeyPatch) -> None:
        self.go, self.threads, real = threading.Event(), set[int](), executable.prepare_adapter

        def prepare(terms: Any) -> object:
            self.threads.add(threading.get_ident())
            assert self.go.wait(60)
            return real(terms)

        patch.setattr(executable, "prepare_adapter", prepare)


def test_a_load_delays_nobody_and_requests_wait_for_it(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an adapter is read and packed every step gives the others their tokens, and the steps' thread does none of
    it; who asked for the adapter meanwhile gets its answer, or its end."""
    machine = machines("exact dense")
    engine = machine.engine(WIDEST)
    submit = Submit(
        request_id=1, prompt_token_ids=(3, 4, 5), params=SamplingParams(temperature=0.0), max_tokens=9, adapter=0
    )
    waiting = {
        2: replace(submit, request_id=2, adapter=3),
        3: replace(submit, request_id=3, adapter=3, timeout_s=0.0),
        4: replace(submit, request_id=4, adapter=3),
        5: replace(submit, request_id=5, adapter=4),
    }
    expected = alone(machine, replace(submit, request_id=2, adapter=2))[2], alone(machine, submit)[1]
    slow = Slow(machine.executable, monkeypatch)
    engine.handle(machine.load(3, which=2))
    engine.handle(LoadAdapter(adapter=4, path=machine.load(0).path, digest=b"other"))
    for one in (submit, *waiting.values()):
        engine.submit(one)
    with pytest.raises(ConfigError, match="an unfinished request has this id"):
        engine.submit(waiting[2])
    assert engine.unfinished == (1, 2, 3, 4, 5)
    assert engine.abort(4)
    results = {request_id: Result() for request_id in (1, *waiting)}

    def step() -> None:
        for event in engine.step():
            results[event.request_id].take(event)

    for count in range(1, 8):
        step()
        assert len(results[1].token_ids) == count
    assert {key: one.reason for key, one in results.items() if one.reason} == {3: "queue_timeout", 4: "abort"}
    engine.handle(UnloadAdapter(3))  # ends nobody who waits for it already
    slow.go.set()
    while engine.has_work:
        step()
    assert (results[2], results[1]) == expected
    assert "not loaded" in str(results[5].error)
    assert slow.threads.isdisjoint({threading.get_ident()})
    assert engine.adapters.in_use == ()


def test_an_engine_that_ends_waits_for_no_adapter(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machines("exact dense")
    engine = machine.engine(WIDEST)
    slow = Slow(machine.executable, monkeypatch)
    engine.handle(machine.load(3, which=2))
    submit = Submit(request_id=1, prompt_token_ids=(3, 4), params=SamplingParams(), max_tokens=2, adapter=3)
    engine.submit(submit)
    engine.handle(Control("abort_all"))
    (ended,) = engine.step()
    assert (ended.request_id, ended.reason) == (1, "abort")  # type: ignore[union-attr]
    engine.handle(UnloadAdapter(3))
    assert not engine.has_work
    engine.close()
    slow.go.set()


def test_what_conversations_kept_of_an_adapter_goes_with_it(machines: Any) -> None:
    """Unless the same one is there under another name."""
    machine = machines("exact dense")
    engine = machine.engine(WIDEST)
    engine.handle(machine.load(7, which=0))
    prompt = tuple(range(20))
    for number, adapter in enumerate((0, 1, None)):
        submit = Submit(
            request_id=number, prompt_token_ids=prompt, params=SamplingParams(), max_tokens=1, adapter=adapter
        )
        run(loaded(engine), [submit])
        engine.handle(Keep(owner=bytes([number]), token_ids=prompt, adapter=adapter))
    kept = engine.counters().kept_blocks
    for number, left in ((0, 3), (7, 2), (1, 1)):
        engine.handle(UnloadAdapter(number))
        assert engine.counters().kept_blocks == kept * left // 3, number
        engine.scheduler.check()


def test_a_closed_engine_lets_go_of_its_model(machines: Any) -> None:
    engine = machines("exact dense").engine(WIDEST)
    engine.close()
    assert engine.executable is None
    assert engine.adapters.executable is None
