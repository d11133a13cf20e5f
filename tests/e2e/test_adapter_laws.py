# SPDX-License-Identifier: Apache-2.0
"""Laws of the engine with adapters: what a request yields depends on it and its adapter alone, bit for bit.

Requests of three adapters and of none run together: in batches, in chunks, preempted, from the prefix cache (twice, on
one engine), forked, as beams. Each must come out as it does alone, and one without an adapter as on a model that knows
of none. LINNET_LAW_TRIALS (default 4) and LINNET_LAW_SEED as in test_engine_laws.
"""

import os
import random
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
        with pytest.raises(UnknownAdapterError, match="not loaded") as caught:
            engine.submit(submit)
        assert words in caplog.messages[-1]
        assert message.path not in str(caught.value)
    wide = write_adapter(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (32, 32)}, rank=17)
    engine.handle(LoadAdapter(adapter=3, path=str(wide), digest=b""))
    with pytest.raises(UnknownAdapterError):
        engine.submit(submit)
    assert "rank 17" in caplog.messages[-1]
    assert not engine.has_work


def test_no_memory_for_an_adapter_is_not_the_end(
    machines: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = machines("exact dense")
    engine = Engine(machine.executable, WIDEST, check=True, adapters=machine.facts)
    real = machine.executable.set_adapter

    def full(place: int, terms: Any) -> None:
        if terms is not None:
            raise MemoryError
        real(place, None)

    with monkeypatch.context() as patch:
        patch.setattr(machine.executable, "set_adapter", full)
        engine.handle(machine.load(0))
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


def test_a_closed_engine_lets_go_of_its_model(machines: Any) -> None:
    engine = machines("exact dense").engine(WIDEST)
    engine.close()
    assert engine.executable is None
    assert engine.adapters.executable is None
