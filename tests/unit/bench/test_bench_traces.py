# SPDX-License-Identifier: Apache-2.0
"""bench/traces.py and batching.py: reading traces, dealing and spreading them, prices of steps, figures of fairness."""

import json
from pathlib import Path
from random import Random

import pytest

from batching import Way, best_rate
from linnet.scheduler import SchedulerConfig
from linnet.scheduler.cost import Work
from step_prices import NAMES, Prices, fit
from trace_figures import figures, jain, max_min, quantile, service_gap
from trace_requests import GREEDY, all_at_once, at_rate, dealt, read, shrunk
from virtual import Asked, Felt, Gate, Replay, VirtualWorld, replay

PRICES = Prices("made up", dict(zip(NAMES, (0.01, 1e-3, 1e-3, 1e-6, 1e-7, 1e-4), strict=True)))


def test_an_azure_trace_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.4799600,110,27\n",
        encoding="utf-8",
    )
    assert read(file) == [Asked(0.0, 4808, 10), Asked(1.5, 110, 27)]


def test_a_mooncake_trace_shares_what_has_the_same_ids(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 2]},
        {"timestamp": 2500, "input_length": 1030, "output_length": 4, "hash_ids": [0, 7, 8]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = read(file)
    assert (second.arrival_s, second.prompt_tokens, second.new_tokens) == (2.5, 1030, 4)
    one, other = first.prompt(0, 1000), second.prompt(1, 1000)
    assert len(one) == 1100
    assert one[:512] == other[:512]
    assert one[512:1024] != other[512:1024]
    small = shrunk([first, second], 64, 100, 50)
    assert [item.piece_tokens for item in small] == [8, 8]
    assert small[0].prompt(0, 1000)[:8] == small[1].prompt(1, 1000)[:8]
    assert len(small[0].prompt(0, 1000)) == 17


def test_what_does_not_fit_is_left_out_and_answers_are_cut() -> None:
    asked = [Asked(0.0, 800, 10), Asked(1.0, 8000, 10), Asked(2.0, 80, 999)]
    kept = shrunk(asked, 8, 300, 128)
    assert [(one.prompt_tokens, one.new_tokens, one.limit) for one in kept] == [(100, 10, 128), (10, 128, 128)]


def test_arrivals_keep_their_shape_at_another_rate() -> None:
    asked = [Asked(5.0, 1, 1), Asked(6.0, 1, 1), Asked(9.0, 1, 1)]
    assert [one.arrival_s for one in at_rate(asked, 0.5)] == [0.0, 1.0, 4.0]
    assert [one.arrival_s for one in all_at_once(asked)] == [0.0, 0.0, 0.0]


def test_the_greedy_tenant_asks_for_as_much_more_as_it_should() -> None:
    owners = [one.tenant for one in dealt([Asked(0.0, 1, 1)] * 7000, 4, 10, seed=3)]
    assert owners.count(GREEDY) / 7000 == pytest.approx(10 / 14, abs=0.03)
    assert len(set(owners)) == 5


def test_prices_are_found_again() -> None:
    random = Random(4)
    samples = []
    for _ in range(300):
        rows, requests = random.randrange(1, 512), random.randrange(1, 32)
        work = Work(rows, requests, 40 * rows, rows * random.randrange(1, 500))
        amounts = (1.0, *map(float, work), float(requests))
        samples.append((amounts, PRICES.of(amounts) * random.uniform(0.95, 1.05)))
    found = fit("made up", samples)
    for amounts, _ in samples:
        assert found.of(amounts) == pytest.approx(PRICES.of(amounts), rel=0.05)
    assert 0.01 < found.spread < 0.05


def test_prices_are_kept_by_name(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    PRICES.save(file)
    Prices("other", dict.fromkeys(NAMES, 1.0)).save(file)
    assert Prices.load(file, "made up") == PRICES


def config(**fields: object) -> SchedulerConfig:
    base: dict[str, object] = {"num_blocks": 64, "max_model_len": 256, "max_sequences": 4, "token_budget": 64}
    return SchedulerConfig(**(base | fields))  # type: ignore[arg-type]


def test_a_request_alone_takes_what_its_steps_take() -> None:
    asked = [Asked(0.0, 150, 20)]
    found = replay(VirtualWorld(config(), PRICES.step_s), asked)
    assert found.felt[0].completion_s == pytest.approx(PRICES.alone_s(150, 20, 64))
    assert figures(found, lambda one: PRICES.alone_s(one.prompt_tokens, one.new_tokens, 64))[
        "slowdown_mean"
    ] == pytest.approx(1.0)


def test_fair_shares_are_max_min() -> None:
    assert max_min({b"a": 10.0, b"b": 2.0, b"c": 10.0}, 12.0) == {b"b": 2.0, b"a": 5.0, b"c": 5.0}
    assert max_min({b"a": 3.0, b"b": 2.0}, 12.0) == {b"b": 2.0, b"a": 3.0}


def served(*amounts: tuple[float, bytes, int]) -> Replay:
    """Both tenants wait from 0 to 10."""
    felt = [Felt(Asked(0.0, 1, 1, tenant), begun_s=10.0, last_s=11.0, tokens=1) for tenant in (b"a", b"b")]
    felt.append(Felt(Asked(9.0, 1, 1, b"a"), begun_s=10.0, last_s=11.0, tokens=1))
    return Replay(felt, list(amounts))


def test_the_gap_counts_while_both_wait() -> None:
    assert service_gap(served((1.0, b"a", 5), (2.0, b"a", 5), (3.0, b"b", 4))) == 10
    assert service_gap(served((1.0, b"a", 5), (2.0, b"b", 9), (12.0, b"b", 50))) == 9
    assert service_gap(served()) == 0


def test_jain_is_one_where_everybody_has_a_fair_share() -> None:
    assert jain(served((1.0, b"a", 5), (2.0, b"b", 5))) == pytest.approx(1.0)
    assert jain(served((1.0, b"a", 5), (10.0, b"b", 5))) == pytest.approx(0.5), "b had nothing in time"


def test_quantiles_are_samples() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]


def test_the_best_rate_keeps_the_bound_and_ten_per_cent_more_would_not() -> None:
    random = Random(5)
    asked, now = [], 0.0
    for _ in range(60):
        asked.append(Asked(now, random.randrange(8, 60), random.randrange(4, 40)))
        now += random.expovariate(1.0)
    way = Way("continuous", 4, Gate(), False)
    found = best_rate(way, config(), PRICES, asked, 3.0)
    assert found is not None
    last = found.felt[-1].asked.arrival_s
    assert quantile((one.completion_s for one in found.felt), 0.99) <= 3.0
    faster = replay(VirtualWorld(config(), PRICES.step_s), at_rate(asked, 1.1 * (len(asked) - 1) / last))
    assert quantile((one.completion_s for one in faster.felt), 0.99) > 3.0
    assert best_rate(way, config(), PRICES, asked, 0.01) is None, "not even alone"
