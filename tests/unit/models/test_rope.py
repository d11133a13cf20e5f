# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies against transformers' own functions, over random parameters."""

import random
from typing import Any

import numpy as np
import pytest

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.models.config import ConfigReader
from linnet.models.rope import read_layer_ropes, read_rope

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
        optional |= {"attn_factor": 0.878, "mscale": 0.707, "mscale_all_dim": 1.0}
        return rope | {name: value for name, value in optional.items() if generator.random() < 0.5}
    rope["short_factor"] = [generator.uniform(1, 2) for _ in range(pairs)]
    rope["long_factor"] = [generator.uniform(2, 30) for _ in range(pairs)]
    mscales = {"short_mscale": 1.1, "long_mscale": 1.2} if generator.random() < 0.5 else {}
    return rope | mscales | ({"factor": 4.0} if generator.random() < 0.5 else {})


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "longrope"])
def test_frequencies_equal_transformers(kind: str, seed: int) -> None:
    """With the factors that others ignore (``attn_factor``, K5; ``short_mscale`` and ``long_mscale``, K12)."""
    generator = random.Random(f"{kind} {seed}")
    head_size = generator.choice([32, 64, 96, 128])
    rope = random_rope(generator, kind, head_size // 2)
    longest = 16384
    context = None if kind != "longrope" or generator.random() < 0.5 else longest
    config_reader = ConfigReader({"rope_parameters": rope})
    spec, usable, reach = read_rope(config_reader, head_size, longest, context)

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
    factor = rope.get("factor", 1.0) if kind == "yarn" else 1.0
    assert reach == max(longest, int(factor * rope.get("original_max_position_embeddings", 0)))
    assert usable == (rope["original_max_position_embeddings"] if kind == "longrope" and context is None else reach)
    ignored = [name for name in ("attn_factor", "short_mscale", "long_mscale") if name in rope]
    assert [any(name in warning for warning in config_reader.warnings) for name in ignored] == [True] * len(ignored)
    assert len(config_reader.warnings) == len(ignored)


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
def test_default_frequencies_are_float32_powers(theta: float) -> None:
    spec, _, _ = read_rope(ConfigReader({"rope_theta": theta}), 64, 2048, None)
    exact = theta ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(spec.inverse_frequencies, exact, rtol=2e-6)
    assert spec.inverse_frequencies[0] == 1.0
    assert all(np.float32(value) == value for value in spec.inverse_frequencies)


def test_yarn_reaches_factor_times_its_original_context() -> None:
    """Model cards tell people to add rope_scaling and say nothing of max_position_embeddings (K6)."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    for longest, reach in ((2048, 8192), (4096, 8192), (8192, 8192), (10000, 10000)):
        found = read_rope(ConfigReader({"rope_scaling": yarn}), 64, longest, None)
        assert (found.usable, found.longest) == (reach, reach)
    del yarn["original_max_position_embeddings"]
    assert read_rope(ConfigReader({"rope_scaling": yarn}), 64, 2048, 8192).usable == 8192
    with pytest.raises(ConfigError, match="8192"):
        read_rope(ConfigReader({"rope_scaling": yarn}), 64, 2048, 8193)


def test_a_rope_per_layer_type_in_both_spellings() -> None:
    thetas = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {"rope_scaling": scaling, "rope_theta": 5e5, "rope_local_base_freq": 2e4}
    nested = {
        "full_attention": scaling | {"rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }

    def read(fields: dict[str, Any]) -> Any:
        return read_layer_ropes(ConfigReader(fields), 64, 4096, None, thetas)

    assert read(old) == read({"rope_parameters": nested}) == read(old | {"rope_parameters": nested})
    assert read({}) == read({"rope_theta": 1e6, "rope_local_base_freq": 1e4})
    assert read({"rope_parameters": {"full_attention": None}}) == read({})
    local = read(old)["sliding_attention"].rope.inverse_frequencies
    assert local == read({"rope_local_base_freq": 2e4})["sliding_attention"].rope.inverse_frequencies
    with pytest.raises(CheckpointError, match="differ"):
        read({"rope_scaling": scaling | {"factor": 4.0}, "rope_parameters": nested})
    with pytest.raises(UnsupportedError, match="sliding_attention"):
        read({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
