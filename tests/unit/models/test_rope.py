# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies against transformers' own functions, over random parameters."""

import random
from typing import Any

import numpy as np
import pytest

from linnet.models.config import ConfigReader
from linnet.models.rope import read_rope

transformers = pytest.importorskip("transformers", reason="compares with transformers")
pytest.importorskip("torch", reason="compares with transformers, which needs PyTorch")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402


def random_rope(generator: random.Random, kind: str, pairs: int) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": generator.choice([100.0, 10000.0, 5e5, 1e6])}
    original = generator.choice([64, 2048, 8192])
    if kind == "linear":
        return rope | {"factor": generator.uniform(1, 16)}
    rope["original_max_position_embeddings"] = original
    if kind == "llama3":
        low = generator.uniform(0.5, 2)
        return rope | {"factor": generator.uniform(1, 32), "low_freq_factor": low, "high_freq_factor": 4 * low}
    if kind == "yarn":
        rope["factor"] = generator.uniform(1, 16)
        optional = {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.7, "truncate": False}
        optional |= {"mscale": 0.707, "mscale_all_dim": 1.0}
        return rope | {name: value for name, value in optional.items() if generator.random() < 0.5}
    rope["short_factor"] = [generator.uniform(1, 2) for _ in range(pairs)]
    rope["long_factor"] = [generator.uniform(2, 30) for _ in range(pairs)]
    return rope | ({"factor": 4.0} if generator.random() < 0.5 else {})


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "longrope"])
def test_frequencies_equal_transformers(kind: str, seed: int) -> None:
    generator = random.Random(f"{kind} {seed}")
    head_size = generator.choice([32, 64, 96, 128])
    rope = random_rope(generator, kind, head_size // 2)
    longest = 16384
    context = None if kind != "longrope" or generator.random() < 0.5 else longest
    spec, usable = read_rope(ConfigReader({"rope_parameters": rope}), head_size, longest, context)

    config = transformers.LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        head_dim=head_size,
        max_position_embeddings=longest,
        rope_parameters=dict(rope),
    )
    expected, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=context)
    assert len(spec.inverse_frequencies) == head_size // 2
    np.testing.assert_allclose(spec.inverse_frequencies, expected.numpy(), rtol=1e-6, atol=0)
    assert spec.attention_factor == pytest.approx(attention, rel=1e-12)
    assert usable == (rope["original_max_position_embeddings"] if kind == "longrope" and context is None else longest)


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
def test_default_frequencies_are_float32_powers(theta: float) -> None:
    spec, _ = read_rope(ConfigReader({"rope_theta": theta}), 64, 2048, None)
    exact = theta ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(spec.inverse_frequencies, exact, rtol=2e-6)
    assert spec.inverse_frequencies[0] == 1.0
    assert all(np.float32(value) == value for value in spec.inverse_frequencies)
