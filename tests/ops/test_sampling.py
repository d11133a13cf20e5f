# SPDX-License-Identifier: Apache-2.0
"""The native sampler and scorer on every tier against their specification, backends/reference/sampling.py."""

import os

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu import _native
from linnet.backends.interface import SamplingBatch
from linnet.backends.reference import sampling as reference

ISAS = _native.available_isas()
TRIALS = int(os.environ.get("LINNET_FUZZ_TRIALS", "6"))
POOL = _native.ThreadPool(2)
FIELDS = (
    "rows", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "position", "history_offsets", "history_ids", "generated_offsets", "generated_ids", "bias_offsets",
    "bias_ids", "bias_values",
)  # fmt: skip


def native(isa: str, logits: np.ndarray, batch: SamplingBatch) -> tuple[np.ndarray, ...]:
    sampler = _native.Sampler(isa, POOL)
    arguments = {name: getattr(batch, name) for name in FIELDS}
    return sampler.sample(
        logits,
        **arguments,
        top_logprobs=batch.top_logprobs,
        allowed=batch.allowed,
        top_allowed=batch.top_allowed,
    )


def random_batch(rng: np.random.Generator, n: int, outputs: int, vocabulary: int) -> SamplingBatch:
    def lists(most: int, unique: bool = False) -> tuple[np.ndarray, np.ndarray]:
        parts = [rng.choice(vocabulary, min(int(c), vocabulary), replace=not unique) for c in rng.integers(0, most, n)]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        return offsets, np.concatenate(parts).astype(np.int32)

    def some(off: float, low: float, high: float) -> np.ndarray:
        return np.where(rng.random(n) < 0.5, off, rng.uniform(low, high, n)).astype(np.float32)

    history_offsets, history_ids = lists(60)
    generated_offsets, generated_ids = lists(40)
    bias_offsets, bias_ids = lists(8, unique=True)
    allowed = None
    if rng.random() < 0.4:
        allowed = rng.integers(0, 2**32, (n, (vocabulary + 31) // 32), dtype=np.uint32)
    return SamplingBatch(
        rows=rng.integers(0, outputs, n).astype(np.int32),
        temperature=np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.3, 2, n)).astype(np.float32),
        top_k=np.where(rng.random(n) < 0.5, 0, rng.integers(1, 100, n)).astype(np.int32),
        top_p=some(1, 0.05, 0.999),
        min_p=some(0, 0.01, 0.5),
        repetition_penalty=some(1, 0.8, 1.5),
        presence_penalty=some(0, -1, 1),
        frequency_penalty=some(0, -1, 1),
        seed=rng.integers(0, 2**64, n, dtype=np.uint64),
        position=rng.integers(0, 2**40, n),
        history_offsets=history_offsets,
        history_ids=history_ids,
        generated_offsets=generated_offsets,
        generated_ids=generated_ids,
        bias_offsets=bias_offsets,
        bias_ids=bias_ids,
        bias_values=rng.normal(size=len(bias_ids)).astype(np.float32) * 3,
        top_logprobs=int(rng.integers(0, min(20, vocabulary) + 1)),
        allowed=allowed,
        top_allowed=rng.random(n) < 0.5 if rng.random() < 0.7 else None,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_random_batches_draw_the_reference_tokens(isa: str) -> None:
    different = drawn = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        vocabulary = int(rng.choice([1, 2, 33, 257, 1000, 5003, 32000]))
        spread = rng.choice([0.0, 0.3, 3.0, 8.0])
        logits = (rng.normal(size=(5, vocabulary)) * spread).astype(np.float32)
        if rng.random() < 0.3:
            logits = np.round(logits)  # many ties
        batch = random_batch(rng, 24, 5, vocabulary)
        tokens, logprobs, top_ids, top_logprobs = native(isa, logits, batch)
        expected = reference.sample(logits, batch)
        different += int((tokens != expected.token_ids).sum())
        drawn += len(tokens)
        same = tokens == expected.token_ids
        np.testing.assert_array_equal(top_ids, expected.top_ids, err_msg=f"seed {trial}")
        np.testing.assert_allclose(top_logprobs, expected.top_logprobs, atol=2e-5, err_msg=f"seed {trial}")
        np.testing.assert_allclose(logprobs[same], expected.logprobs[same], atol=2e-5, err_msg=f"seed {trial}")
    # fp32 exponentials move a boundary by about 1e-7 of the mass: a rare token may differ, never many.
    assert different <= max(1, drawn // 500), f"{different} of {drawn} tokens differ"


@pytest.mark.parametrize("isa", ISAS)
def test_alternatives_of_allowed_tokens_only(isa: str) -> None:
    """Their log-probabilities stay the model's own; where fewer are allowed than are to be told, others are at -inf."""
    logits = np.array([[4.0, 3.0, 2.0, 1.0, 0.0]], np.float32)
    batch = SamplingBatch.greedy([0, 0, 0])
    batch.top_logprobs = 3
    batch.allowed = np.array([[0b11010], [0b11010], [0b10000]], np.uint32)
    batch.top_allowed = np.array([False, True, True])
    told = np.array([[4.0, 3.0, 2.0], [3.0, 1.0, 0.0], [0.0, -np.inf, -np.inf]]) - np.log(np.exp(logits).sum())
    for result in (native(isa, logits, batch), reference.sample(logits, batch)):
        drawn, _, ids, values = result if isinstance(result, tuple) else vars(result).values()
        assert drawn.tolist() == [1, 1, 4]
        assert ids.tolist() == [[0, 1, 2], [1, 3, 4], [4, 0, 1]]
        np.testing.assert_allclose(values, told, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_without_log_probabilities_the_same_tokens_are_drawn(isa: str) -> None:
    for trial in range(8):
        rng = np.random.default_rng(trial)
        vocabulary = int(rng.choice([1, 33, 5003]))
        logits = (rng.normal(size=(5, vocabulary)) * 3).astype(np.float32)
        logits[trial % 5, 0] = np.nan
        batch = random_batch(rng, 24, 5, vocabulary)
        told = native(isa, logits, batch)[0]
        batch.top_logprobs = None
        tokens, logprobs, top_ids, top_logprobs = native(isa, logits, batch)
        expected = reference.sample(logits, batch)
        np.testing.assert_array_equal(tokens, told, err_msg=f"seed {trial}")
        assert np.isnan(logprobs).all()
        assert np.isnan(expected.logprobs).all()
        assert top_ids.shape == top_logprobs.shape == expected.top_ids.shape == (24, 0)


@pytest.mark.parametrize("isa", ISAS)
def test_flat_distributions_over_a_large_vocabulary(isa: str) -> None:
    """A share of a mass that tens of thousands of tokens hold, with and without ties and rare tokens cut off."""
    rng = np.random.default_rng(11)
    vocabulary, n = 40009, 48
    for spread, rounded in ((0.0, False), (0.01, False), (1.0, True), (2.5, False), (30.0, False)):
        logits = (rng.normal(size=(4, vocabulary)) * spread).astype(np.float32)
        logits[3, rng.random(vocabulary) < 0.5] = -np.inf
        if rounded:
            logits = np.round(logits, 1)
        batch = SamplingBatch.greedy(rng.integers(0, 4, n).astype(np.int32))
        batch.temperature = rng.uniform(0.5, 2, n).astype(np.float32)
        batch.top_p = np.where(rng.random(n) < 0.1, 1.0, rng.choice([0.001, 0.3, 0.9, 0.99, 0.99999], n)).astype(
            np.float32
        )
        batch.min_p = np.where(rng.random(n) < 0.6, 0.0, rng.choice([1e-6, 0.01, 0.3], n)).astype(np.float32)
        batch.seed = rng.integers(0, 2**64, n, dtype=np.uint64)
        tokens = native(isa, logits, batch)[0]
        expected = reference.sample(logits, batch).token_ids
        # A boundary of the cumulated mass may lie a rounding further: then the neighbour is drawn, never a stranger.
        assert (tokens != expected).mean() <= 0.05, f"{spread}: {tokens[tokens != expected]}"
        assert np.abs(tokens - expected)[tokens != expected].max(initial=0) <= 40, spread


@pytest.mark.parametrize("isa", ISAS)
def test_uniform_numbers_follow_the_distribution(isa: str) -> None:
    n = 20000
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    batch = SamplingBatch.greedy(np.zeros(n, np.int32))
    batch.temperature = np.ones(n, np.float32)
    batch.seed = np.full(n, 7, np.uint64)
    batch.position = np.arange(n, dtype=np.int64)
    counts = np.bincount(native(isa, logits, batch)[0], minlength=4) / n
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.125, 0.125], atol=0.015)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_without_a_distribution_do_not_disturb_the_others(isa: str) -> None:
    logits = np.zeros((5, 70), np.float32)
    logits[0, 3] = np.nan
    logits[1] = -np.inf
    logits[2, [5, 9]] = np.inf
    logits[3, 69] = 4
    logits[4, :69] = -np.inf
    batch = SamplingBatch.greedy(np.arange(5))
    batch.top_logprobs = 2
    for temperature in (0.0, 1.0):
        batch.temperature = np.full(5, temperature, np.float32)
        tokens, logprobs, _, _ = native(isa, logits, batch)
        assert tokens[:3].tolist() == [-1, -1, 5]
        assert (tokens[4], logprobs[4]) == (69, 0)
        assert np.isnan(logprobs[:2]).all()
    batch.temperature = np.zeros(5, np.float32)
    assert native(isa, logits, batch)[0][3] == 69


@pytest.mark.parametrize("isa", ISAS)
def test_a_temperature_too_small_to_divide_by_leaves_the_greatest(isa: str) -> None:
    logits = np.array([[1.0, 4.0, 3.0, 4.0], [-4.0, -3.0, -5.0, -3.0]], np.float32)
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 0.1), (3, 0.9, 0.1)):
        batch = SamplingBatch.greedy(np.arange(2))
        batch.temperature = np.full(2, 1e-39, np.float32)
        batch.top_k, batch.top_p = np.full(2, top_k, np.int32), np.full(2, top_p, np.float32)
        batch.min_p = np.full(2, min_p, np.float32)
        assert native(isa, logits, batch)[0].tolist() == reference.sample(logits, batch).token_ids.tolist() == [1, 1]


def test_bad_batches_are_refused() -> None:
    logits = np.zeros((2, 10), np.float32)
    batch = SamplingBatch.greedy(np.array([0, 2], np.int32))
    with pytest.raises(ValueError, match=r"rows\[1\] is 2"):
        native("portable", logits, batch)
    batch = SamplingBatch.greedy(np.array([0]))
    batch.history_ids, batch.history_offsets = np.array([10], np.int32), np.array([0, 1], np.int64)
    with pytest.raises(ValueError, match="history_ids"):
        native("portable", logits, batch)
    batch.history_offsets = np.array([0, 2], np.int64)
    with pytest.raises(ValueError, match="history_offsets"):
        native("portable", logits, batch)


@pytest.mark.parametrize("isa", ISAS)
def test_scores_agree_with_the_reference(isa: str) -> None:
    sampler = _native.Sampler(isa, POOL)
    for trial in range(TRIALS):
        rng = np.random.default_rng(100 + trial)
        vocabulary = int(rng.choice([2, 17, 300, 4099]))
        own = (rng.normal(size=(6, vocabulary)) * 4).astype(np.float32)
        if trial % 2:
            own = np.round(own)
        other = (own + rng.normal(size=own.shape) * rng.choice([0.0, 0.01, 1.0])).astype(np.float32)
        rows = rng.integers(0, 6, 9).astype(np.int32)
        targets = rng.integers(0, vocabulary, 9).astype(np.int32)
        logprobs, greedy, ranks, kl, other_greedy = sampler.score(own, rows, targets, other)
        expected = reference.score(own, rows, targets, other)
        np.testing.assert_allclose(logprobs, expected.logprobs, atol=1e-5)
        np.testing.assert_array_equal(greedy, expected.greedy)
        np.testing.assert_array_equal(ranks, expected.ranks)
        np.testing.assert_allclose(kl, expected.kl, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(other_greedy, expected.other_greedy)
