# SPDX-License-Identifier: Apache-2.0
"""Every bad value of every parameter is one sentence naming the parameter."""

import dataclasses

import numpy as np
import pytest

from linnet.backends.reference.sampling import sample
from linnet.engine import ParameterError, SamplingParams, derive_seed
from linnet.engine.sampling import SamplingBatches, SamplingEntry, sampling_batch

NAN, INFINITY = float("nan"), float("inf")
WEIRD = [NAN, INFINITY, -INFINITY, -1, 0, 2**31, 2**63, 1e308, "1", True, None, [], {}]

ACCEPTED = {
    "max_tokens": [None],
    "min_tokens": [0],
    "temperature": [0],
    "top_p": [],
    "top_k": [-1, 0],
    "min_p": [0],
    "presence_penalty": [-1, 0],
    "frequency_penalty": [-1, 0],
    "repetition_penalty": [],
    "seed": [-1, 0, 2**31, 2**63, None],
    "stop": ["1", []],
    "include_stop_str": [True],
    "stop_token_ids": [[], {}],
    "ignore_eos": [True],
    "logit_bias": [{}],
    "logprobs": [0, None],
    "prompt_logprobs": [0, None],
    "n": [],
    "use_beam_search": [True],
    "length_penalty": [-1, 0],
    "early_stopping": [True],
    "skip_special_tokens": [True],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_boundary_values(name: str) -> None:
    for value in WEIRD:
        accepted = any(value is one or (type(value) is type(one) and value == one) for one in ACCEPTED[name])
        if name == "stop_token_ids" and value == {} and isinstance(value, dict):
            accepted = False
        if accepted:
            SamplingParams(**{name: value})
        else:
            with pytest.raises(ParameterError) as caught:
                SamplingParams(**{name: value})
            assert caught.value.param == name
            assert str(caught.value).startswith(name)
            assert "\n" not in str(caught.value)


def test_the_table_has_every_parameter() -> None:
    assert set(ACCEPTED) == set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["a", 1]),
        ("stop", [""]),
        ("stop", ["x" * 5000]),
        ("stop", [str(index) for index in range(300)]),
        ("stop_token_ids", [1, -1]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [1.0]),
        ("logit_bias", {1: 101}),
        ("logit_bias", {"1": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {1: NAN}),
        ("logit_bias", dict.fromkeys(range(5000), 0.0)),
        ("min_tokens", 20),
        ("early_stopping", "always"),
    ],
)
def test_bad_contents(name: str, value: object) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(max_tokens=10, **{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name
    assert len(str(caught.value)) < 300


def test_values_are_normalised() -> None:
    params = SamplingParams(stop="end", temperature=1, stop_token_ids=[3, 3, 4], prompt_logprobs=0, max_tokens=0)
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 4)
    assert isinstance(params.temperature, float)
    with pytest.raises(ParameterError):
        SamplingParams(max_tokens=0)


def test_seeds_of_samples() -> None:
    assert derive_seed(7, 0) == 7
    assert derive_seed(-1, 0) == 2**64 - 1
    seeds = {derive_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive_seed(7, 3) == derive_seed(7, 3)


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-38, 1e-37, 1e-20, 9e-6])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    entry = SamplingEntry(0, SamplingParams(temperature=temperature), 7, (1, 2, 3), 3, frozenset())
    batch = sampling_batch([entry], 1)
    logits = np.array([[3.0, 9.0, -4.0, 8.9]], np.float32)
    assert sample(logits, batch).token_ids[0] == 1
    assert sample(logits - 50, batch).token_ids[0] == 1


def test_batches_that_are_reused_are_what_they_would_be_anew() -> None:
    """Requests come, go, grow and swap places; some look at their tokens, so their entries are never reused."""
    random = np.random.default_rng(4)
    kinds = (
        SamplingParams(),
        SamplingParams(temperature=0.0, logprobs=2),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(repetition_penalty=1.2),
        SamplingParams(presence_penalty=0.5),
        SamplingParams(min_tokens=3),
        SamplingParams(logit_bias={3: 1.0}),
    )
    batches, reused = SamplingBatches(2), 0
    people = [(kinds[int(random.integers(3))], seed, [1, 2]) for seed in range(4)]
    for _ in range(600):
        if random.random() < 0.1:
            kind = kinds[int(random.integers(3 if random.random() < 0.8 else len(kinds)))]
            people[int(random.integers(len(people)))] = (kind, int(random.integers(2**63)), [1, 2])
        if random.random() < 0.1:
            random.shuffle(people)
        chosen = people[: 3 if random.random() < 0.05 else 4]
        entries = []
        for row, (params, seed, known) in enumerate(chosen):
            known.append(int(random.integers(60)))
            mask = np.full(2, 7, np.uint32) if random.random() < 0.02 else None
            entries.append(SamplingEntry(2 * row, params, seed, known, 2, frozenset({5}), mask))
        before = batches._batch
        found, wanted = batches.of(entries), sampling_batch(entries, 2)
        reused += found is before
        for field in dataclasses.fields(wanted):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name), err_msg=field.name)
    assert 50 < reused < 550
