# SPDX-License-Identifier: Apache-2.0
"""The sampling specification against brute force, known answers and its own laws."""

import numpy as np
import pytest

from linnet.backends.interface import SamplingBatch
from linnet.backends.reference import sampling
from linnet.errors import ConfigError


def batch(n: int = 1, **changes) -> SamplingBatch:
    """n entries on rows 0 .. n at temperature 1, changed as told."""
    result = SamplingBatch.greedy(range(n))
    result.temperature = np.ones(n, np.float32)
    for name, value in changes.items():
        current = getattr(result, name)
        dtype = current.dtype if isinstance(current, np.ndarray) else None
        setattr(result, name, np.full(n, value, dtype) if dtype is not None and np.isscalar(value) else value)
    return result


def test_philox_matches_the_known_answers_of_random123():
    ones = 0xFFFFFFFF
    assert sampling.philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert sampling.philox4x32((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    expected = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert sampling.philox4x32(counter, (0xA4093822, 0x299F31D0)) == expected


def test_uniform_is_uniform_and_depends_on_every_argument():
    numbers = np.array([sampling.uniform(7, position, 0) for position in range(4000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
    base = sampling.uniform(1, 2, 0)
    others = {sampling.uniform(*key) for key in [(2, 2, 0), (1, 3, 0), (1, 2, 1), (1 + 2**32, 2, 0), (1, 2 + 2**32, 0)]}
    assert base not in others
    assert len(others) == 5


def test_greedy_takes_the_lowest_id_among_ties():
    logits = np.array([[0, 3, 3, 1], [5, 5, 5, 5]], np.float32)
    result = sampling.sample(logits, SamplingBatch.greedy([1, 0]))
    assert result.token_ids.tolist() == [0, 1]


def test_frequencies_follow_the_distribution():
    logits = np.log(np.array([[0.5, 0.2, 0.2, 0.1]], np.float32))
    draws = [int(sampling.sample(logits, batch(seed=3, position=i)).token_ids[0]) for i in range(4000)]
    assert np.allclose(np.bincount(draws, minlength=4) / 4000, [0.5, 0.2, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),  # ids 1 and 2 tie: the lowest stays
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.3}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),
    ],
)
def test_filters_keep_exactly_the_defined_tokens(settings, expected):
    mass = np.array([0.5, 0.2, 0.2, 0.1]) / 0.5
    kept = sampling.keep_mask(mass, settings.get("top_k", 0), settings.get("top_p", 1.0), settings.get("min_p", 0.0))
    assert np.flatnonzero(kept).tolist() == expected


def test_mask_bias_and_penalties_come_in_the_defined_order():
    logits = np.array([[2.0, -1.0, 1.0, 0.5]], np.float32)
    settings = batch(
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        history_offsets=np.array([0, 4]),
        history_ids=np.array([0, 1, 1, 0], np.int32),
        generated_offsets=np.array([0, 2]),
        generated_ids=np.array([1, 1], np.int32),
        bias_offsets=np.array([0, 2]),
        bias_ids=np.array([0, 3], np.int32),
        bias_values=np.array([2.0, 9.0], np.float32),
        allowed=np.array([[0b0111]], np.uint32),
    )
    adjusted = sampling.adjust(logits[0], settings, 0)
    assert adjusted.tolist() == [2.0, -3.25, 1.0, -np.inf]


def test_a_row_without_a_distribution_gets_minus_one_and_leaves_the_others_alone():
    logits = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
    assert sampling.sample(logits, SamplingBatch.greedy([0, 1])).token_ids.tolist() == [-1, 1]
    nothing = batch(allowed=np.zeros((1, 1), np.uint32))
    assert sampling.sample(logits[1:], nothing).token_ids.tolist() == [-1]


@pytest.mark.parametrize("logits", [[1.0, 3.0, 3.0], [-5.0, -3.0, -3.0]])
def test_a_temperature_so_small_that_the_division_overflows_is_greedy(logits):
    draw = batch(temperature=1e-45, seed=1)
    assert sampling.sample(np.array([logits], np.float32), draw).token_ids.tolist() == [1]


def test_logprobs_are_of_the_raw_distribution():
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    result = sampling.sample(logits, batch(temperature=0.3, top_k=2, top_logprobs=5))
    reference = logits[0] - np.log(np.exp(logits[0].astype(np.float64)).sum())
    assert np.allclose(result.logprobs[0], reference[result.token_ids[0]], atol=1e-6)
    assert result.top_ids[0].tolist() == np.argsort(-logits[0])[:5].tolist()
    assert np.allclose(result.top_logprobs[0], reference[result.top_ids[0]], atol=1e-6)


def test_scores_against_brute_force():
    random = np.random.default_rng(1)
    own, other = random.normal(size=(2, 6, 30)).astype(np.float32)
    rows, targets = np.array([5, 0, 3], np.int32), np.array([1, 29, 7], np.int32)
    scores = sampling.score(own, rows, targets, other)
    p, q = (np.exp(x[rows].astype(float)) / np.exp(x[rows].astype(float)).sum(1, keepdims=True) for x in (other, own))
    assert np.allclose(scores.kl, (p * np.log(p / q)).sum(1), atol=1e-6)
    assert np.allclose(scores.logprobs, np.log(q[range(3), targets]), atol=1e-6)
    assert scores.greedy.tolist() == own[rows].argmax(1).tolist()
    assert scores.other_greedy.tolist() == other[rows].argmax(1).tolist()
    assert scores.ranks.tolist() == [(own[r] > own[r, t]).sum() for r, t in zip(rows, targets, strict=True)]
    assert sampling.score(own, rows, targets, own).kl.tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="targets must lie"):
        sampling.score(own, rows, targets + 30)


def test_a_greedy_batch_can_be_changed_field_by_field() -> None:
    batch = SamplingBatch.greedy([0, 1])
    batch.temperature[:] = 1
    batch.history_offsets[-1] = 1
    assert (batch.min_p == 0).all()
    assert (batch.generated_offsets == 0).all()
