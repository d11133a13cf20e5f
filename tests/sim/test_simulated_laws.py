# SPDX-License-Identifier: Apache-2.0
"""Laws of the scheduler over random workloads; LINNET_SIM_TRIALS sets how many (a failure names its seed)."""

from dataclasses import replace
from random import Random

import pytest
from scheduler_world import TRIALS, Arrival, Run, Workload, random_config, random_workload, simulate

from linnet.scheduler import SchedulerConfig


def spacious(workload: Workload, **fields: object) -> SchedulerConfig:
    """Room for everybody, whole prompts, no cache: the plain run that others are compared with."""
    base: dict[str, object] = {
        "num_blocks": len(workload.arrivals) * workload.longest_tokens,
        "max_model_len": workload.longest_tokens,
        "token_budget": 4096,
        "prefix_cache": False,
    }
    return SchedulerConfig(**(base | fields))  # type: ignore[arg-type]


def outcome(run: Run) -> tuple[dict[int, tuple[int, ...]], dict[int, str]]:
    return run.tokens, run.reasons


@pytest.mark.parametrize("seed", range(TRIALS))
def test_random_runs_obey_every_law(seed: int) -> None:
    """Aborts in every phase, deadlines, both policies, all limits at once; `simulate` checks after every call."""
    random = Random(seed)
    workload = random_workload(random, random.randint(1, 16), aborts=random.random() < 0.7, deadlines=True)
    simulate(workload, random_config(random, workload), withholds=random if random.random() < 0.3 else None)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_each_request_alone_equals_all_together(seed: int) -> None:
    random = Random(10_000 + seed)
    workload = random_workload(random, 8)
    together = simulate(workload, random_config(random, workload))
    for arrival in workload.arrivals:
        alone = simulate(Workload((Arrival(0, arrival.fields),)), spacious(workload))
        request_id = arrival.request().request_id
        assert alone.tokens[request_id] == together.tokens[request_id]
        assert alone.reasons[request_id] == together.reasons[request_id]


@pytest.mark.parametrize("seed", range(max(1, TRIALS // 3)))
@pytest.mark.parametrize("preempt_every", [1, 2, 3, 7])
def test_forced_preemption_in_a_pool_of_one_sequence_changes_nothing(preempt_every: int, seed: int) -> None:
    """R8: sixteen clients share room for a single maximal sequence; no deadlock, all finish, nothing differs."""
    random = Random(20_000 + seed)
    workload = random_workload(random, 16)
    plain = simulate(workload, spacious(workload))
    config = random_config(random, workload, one_sequence_only=True, max_sequences=16, preempt_every=preempt_every)
    squeezed = simulate(workload, config)
    assert outcome(squeezed) == outcome(plain)
    assert squeezed.scheduler.counters().preemptions > 0


@pytest.mark.parametrize("seed", range(max(1, TRIALS // 3)))
@pytest.mark.parametrize("swap_blocks", [1, 4, 1000])
def test_swapping_changes_nothing(swap_blocks: int, seed: int) -> None:
    """Room for little more than one sequence: who is preempted finds in the tier what it has computed, all of it where
    the tier is large, whether copies are fast, slow or of no known speed."""
    random = Random(60_000 + seed)
    workload = random_workload(random, 16)
    plain = simulate(workload, spacious(workload))
    fixed = {"prefix_cache": True, "preempt_every": random.choice((None, 1, 2, 3)), "block_size": random.choice((1, 2))}
    config = random_config(random, workload, one_sequence_only=True, **fixed)
    for blocks, copy_s in ((0, 0.0), (swap_blocks, random.choice((0.0, 1e-6, 1e-4, 0.003, 1.0)))):
        run = simulate(workload, config.with_swap_blocks([blocks] * len(config.groups)), copy_s=copy_s)
        assert outcome(run) == outcome(plain)


def test_blocks_come_back_where_that_is_faster() -> None:
    """Copies that are nearly free save most of what preemptions cost; dear ones are not made."""
    computed = dict.fromkeys(("none", "fast", "slow"), 0)
    declined = loaded = dearly_loaded = 0
    for seed in range(16):
        random = Random(70_000 + seed)
        workload = random_workload(random, 16)
        fixed = {"prefix_cache": True, "preempt_every": 2, "block_size": 2, "policy": "fcfs", "max_sequences": 4}
        config = random_config(random, workload, one_sequence_only=True, windows=(None,), **fixed)
        for name, blocks, copy_s in (("none", 0, 0.0), ("fast", 1000, 1e-7), ("slow", 1000, 0.2)):
            counters = simulate(workload, replace(config, swap_blocks=blocks), copy_s=copy_s).scheduler.counters()
            computed[name] += counters.computed_tokens
            if name == "fast":
                loaded += counters.swapped_in_blocks
                assert counters.swap_declined_blocks == 0
            if name == "slow":
                declined += counters.swap_declined_blocks
                dearly_loaded += counters.swapped_in_blocks
    assert 20 * dearly_loaded < loaded, "those before anybody knew what a copy takes"
    assert declined > 0
    assert computed["fast"] < computed["slow"]
    assert computed["slow"] < 1.01 * computed["none"], "the first loads move the steps that follow"


@pytest.mark.parametrize("seed", range(max(1, TRIALS // 3)))
def test_cache_on_equals_cache_off(seed: int) -> None:
    random = Random(30_000 + seed)
    workload = random_workload(random, 12)
    block_size = random.choice((1, 2, 4))
    runs = [
        simulate(workload, spacious(workload, block_size=block_size, max_sequences=3, prefix_cache=cache))
        for cache in (False, True)
    ]
    assert outcome(runs[0]) == outcome(runs[1])
    assert runs[0].scheduler.counters().prefix_hit_tokens == 0


@pytest.mark.parametrize("seed", range(max(1, TRIALS // 3)))
def test_chunked_equals_whole(seed: int) -> None:
    random = Random(40_000 + seed)
    workload = random_workload(random, 12)
    whole = simulate(workload, spacious(workload))
    for budget, chunk in ((1, None), (3, None), (16, 2), (64, 5)):
        chunked = simulate(workload, spacious(workload, token_budget=budget, max_chunk_tokens=chunk))
        assert outcome(chunked) == outcome(whole)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_guessed_equals_plain(seed: int) -> None:
    """Guesses, right and wrong, change when tokens come and none of them; they save steps."""
    random = Random(50_000 + seed)
    workload = random_workload(random, 12)
    plain = simulate(workload, spacious(workload))
    guessed = simulate(workload, spacious(workload), guesses=random)
    assert outcome(guessed) == outcome(plain)
    assert guessed.scheduler.counters().steps <= plain.scheduler.counters().steps
    mixed = random_config(random, workload)
    assert outcome(simulate(workload, mixed, withholds=random, guesses=random)) == outcome(plain)


def test_the_workloads_reach_what_they_are_meant_to_test() -> None:
    """A law that is never put to the test is no law: hits, preemptions, evictions and every finish reason occur."""
    seen: dict[str, int] = {"hits": 0, "preemptions": 0, "cached": 0, "copies": 0, "stores": 0, "loads": 0}
    reasons: set[str] = set()
    for seed in range(100):
        random = Random(seed)
        workload = random_workload(random, random.randint(1, 16), aborts=random.random() < 0.7, deadlines=True)
        run = simulate(workload, random_config(random, workload))
        counters = run.scheduler.counters()
        seen["hits"] += counters.prefix_hit_tokens
        seen["preemptions"] += counters.preemptions
        seen["cached"] += counters.cached_blocks
        seen["copies"] += run.model.moves["copy"]
        seen["stores"] += run.model.moves["store"]
        seen["loads"] += run.model.moves["load"]
        reasons |= set(run.reasons.values())
    assert all(seen.values()), seen
    assert reasons == {"stop", "length", "abort", "timeout", "queue_timeout"}
