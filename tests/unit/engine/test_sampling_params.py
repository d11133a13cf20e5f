# SPDX-License-Identifier: Apache-2.0
"""Every bad value of every parameter is one sentence naming the parameter."""

import numpy as np
import pytest

from linnet.backends.reference.sampling import sample
from linnet.engine import ParameterError, SamplingParams, derive_seed
from linnet.engine.sampling import SamplingEntry, sampling_batch

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
