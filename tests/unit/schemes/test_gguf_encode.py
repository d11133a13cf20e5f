# SPDX-License-Identifier: Apache-2.0
"""Weights into GGUF blocks: less error than ggml's own rounding, and none where a block can hold the numbers."""

from typing import Any

import numpy as np
import pytest
from ggml_k_rounding import rounded
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as ggml_dequantize
from gguf.quants import quantize as ggml_quantize
from gguf_random_blocks import random_blocks

from linnet.errors import CheckpointError, ConfigError
from linnet.schemes.gguf_blocks import BLOCK_TYPES, ENCODED, block_scales, codes, dequantize, encode, exact_blocks, join

Array = Any
PLAIN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
LEVELS = ("Q4_K", "Q5_K", "Q6_K")


def weights(seed: int, rows: int = 16, columns: int = 1024) -> Array:
    """Heavy-tailed, as real ones are, the columns of different width."""
    generator = np.random.default_rng(seed)
    wide = np.exp(generator.normal(0, 0.5, columns))
    return (generator.standard_t(4, (rows, columns)) * wide * 0.02).astype(np.float32)


def error(weight: Array, other: Array, importance: Array | float = 1.0) -> Array:
    return (importance * (weight.astype(np.float64) - other) ** 2).sum(axis=1)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_no_block_loses_more_than_ggml_s(name: str, seed: int) -> None:
    kind, weight = BLOCK_TYPES[name], weights(seed)
    form = GGMLQuantizationType[name]
    ours = dequantize(kind, encode(kind, weight)).reshape(-1, 32)
    theirs = ggml_dequantize(ggml_quantize(weight, form), form).reshape(-1, 32)
    flat = weight.reshape(-1, 32)
    assert (error(flat, ours) <= error(flat, theirs) * (1 + 1e-4)).all()
    assert error(flat, ours).sum() < 0.96 * error(flat, theirs).sum()


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_in_k_blocks_loses_less_than_ggml_s(name: str, seed: int) -> None:
    kind, weight = BLOCK_TYPES[name], weights(seed)
    ours = dequantize(kind, encode(kind, weight))
    assert error(weight, ours).sum() < 0.98 * error(weight, rounded(name, weight)).sum()


@pytest.mark.parametrize("name", ENCODED)
def test_more_bits_lose_less_and_importance_counts(name: str) -> None:
    kind, weight = BLOCK_TYPES[name], weights(5)
    importance = np.exp(np.random.default_rng(6).normal(0, 2, weight.shape[1]))
    plain, weighed = (dequantize(kind, encode(kind, weight, which)) for which in (None, importance))
    limit = {2: 0.4, 3: 0.25, 4: 0.13, 5: 0.07, 6: 0.03, 8: 0.009}[kind.bits]
    assert np.sqrt(error(weight, plain).sum() / (weight.astype(np.float64) ** 2).sum()) < limit
    assert error(weight, weighed, importance).sum() < 0.97 * error(weight, plain, importance).sum()
    uniform = encode(kind, weight, np.full(weight.shape[1], 7.0))
    assert error(weight, dequantize(kind, uniform)).sum() == pytest.approx(error(weight, plain).sum(), rel=1e-3)


@pytest.mark.parametrize("name", ENCODED)
def test_columns_that_nothing_reads_are_no_trouble(name: str) -> None:
    kind, weight = BLOCK_TYPES[name], weights(7)
    importance = np.zeros(weight.shape[1])
    importance[::3] = 1
    whole = dequantize(kind, encode(kind, weight, importance))
    assert np.isfinite(whole).all()
    assert np.isfinite(dequantize(kind, encode(kind, weight, np.zeros(weight.shape[1])))).all()
    assert (
        error(weight, whole, importance).sum()
        <= error(weight, dequantize(kind, encode(kind, weight)), importance).sum()
    )


@pytest.mark.parametrize("name", ENCODED)
def test_blocks_of_one_value_come_back(name: str) -> None:
    kind = BLOCK_TYPES[name]
    weight = np.repeat(np.array([[0.0], [-0.25], [0.5], [1e-7]], np.float32), 512, axis=1)
    whole = dequantize(kind, encode(kind, weight))
    assert np.array_equal(whole[0], weight[0])
    assert np.allclose(whole[1:3], weight[1:3], rtol=2e-2)
    assert np.abs(whole[3]).max() < 1e-6


@pytest.mark.parametrize("name", ENCODED)
def test_what_blocks_hold_is_encoded_again_without_loss(name: str) -> None:
    """From the values alone: one-level types to the last bit, two levels almost; from their parts, both exactly."""
    kind = BLOCK_TYPES[name]
    weight = dequantize(kind, encode(kind, weights(8)))
    again = dequantize(kind, encode(kind, weight))
    lost = np.sqrt(error(weight, again).sum() / (weight.astype(np.float64) ** 2).sum())
    assert lost <= (0 if kind.sub_scales is None else 0.05 if kind.bits == 2 else 0.01)
    parts = encode(kind, weights(8))
    assert np.array_equal(join(kind, codes(kind, parts), block_scales(kind, parts)), parts)


def test_rows_and_chunks_do_not_matter() -> None:
    kind, weight = BLOCK_TYPES["Q4_K"], weights(9, rows=70, columns=2048)
    whole = encode(kind, weight)
    assert np.array_equal(encode(kind, weight[37:39]), whole[37:39])


@pytest.mark.parametrize(
    ("name", "numbers", "group"),
    [("Q4_0", (-8, 7), 32), ("Q4_0", (-8, 7), 128), ("Q4_1", (-8, 7), 32), ("Q5_0", (-15, 15), 64),
     ("Q5_1", (-15, 15), 32), ("Q8_0", (-128, 127), 1024), ("Q4_K", (-8, 7), 1024), ("Q4_K", (-8, 7), 256),
     ("Q5_K", (-15, 15), 512), ("Q6_K", (-32, 31), 256), ("TQ2_0", (-1, 1), 1024), ("TQ1_0", (-1, 1), 256)],
)  # fmt: skip
def test_whole_numbers_with_fp16_scales_are_held_exactly(name: str, numbers: tuple[int, int], group: int) -> None:
    generator = np.random.default_rng(10)
    whole = generator.integers(numbers[0], numbers[1] + 1, (6, 1024))
    scales = generator.normal(0, 0.01, (6, 1024 // group)).astype(np.float16).astype(np.float32)
    if BLOCK_TYPES[name].minimum and BLOCK_TYPES[name].sub_scales:
        scales = np.abs(scales)
    blocks = exact_blocks(BLOCK_TYPES[name], whole, scales)
    assert not isinstance(blocks, str), blocks
    expected = whole.astype(np.float32) * np.repeat(scales, group, axis=1)
    assert np.array_equal(dequantize(BLOCK_TYPES[name], blocks), expected)


def test_scales_that_are_multiples_of_one_number_fit_two_levels() -> None:
    generator = np.random.default_rng(11)
    whole = generator.integers(-8, 8, (4, 512))
    scales = np.float32(0.0078125) * generator.integers(1, 8, (4, 16)).astype(np.float32)
    for name in ("Q4_K", "Q6_K"):
        blocks = exact_blocks(BLOCK_TYPES[name], whole, scales)
        assert not isinstance(blocks, str), blocks
        expected = whole.astype(np.float32) * np.repeat(scales, 32, axis=1)
        assert np.array_equal(dequantize(BLOCK_TYPES[name], blocks), expected)


@pytest.mark.parametrize(
    ("name", "numbers", "scale", "why"),
    [
        ("Q4_0", [-9, 7], [0.5], "codes reach from -9 to 7, Q4_0's from -8 to 7"),
        ("Q4_1", [-8, 8], [0.5], "codes reach from 0 to 16"),
        ("Q4_0", [-8, 7], [0.1], "a scale is no fp16 number"),
        ("Q4_0", [-8, 7], [1e6], "a scale is no fp16 number"),
        ("Q4_K", [-8, 7], [0.1], "no whole multiple of fp16's smallest number"),
        ("Q4_K", [-8, 7], [1.0, 1.0078125] * 4, "no small whole multiples of one number"),
        ("Q4_0", [-8, 7], [0.5, 0.25] * 8, "groups of 16 columns share a scale, 32 do in Q4_0"),
        ("IQ4_NL", [-8, 7], [0.5], "has a codebook"),
    ],
)
def test_why_numbers_are_not_held_exactly(name: str, numbers: list[int], scale: list[float], why: str) -> None:
    whole = np.resize(np.array(numbers), (2, 256))
    answer = exact_blocks(BLOCK_TYPES[name], whole, np.array([scale], np.float32))
    assert isinstance(answer, str)
    assert why in answer


def test_what_cannot_be_encoded_is_said() -> None:
    weight = np.ones((2, 96), np.float32)
    with pytest.raises(ConfigError, match="96 columns are no multiple of the 256 of a Q4_K block"):
        encode(BLOCK_TYPES["Q4_K"], weight)
    with pytest.raises(ConfigError, match="IQ4_XS blocks can be read, not made"):
        encode(BLOCK_TYPES["IQ4_XS"], weight)
    weight[1, 50] = np.nan
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        encode(BLOCK_TYPES["Q4_0"], weight)
    with pytest.raises(CheckpointError, match="fp16 cannot hold"):
        encode(BLOCK_TYPES["Q4_0"], np.full((1, 32), 1e6, np.float32))


def test_random_blocks_of_every_type_are_bit_identical_after_their_parts() -> None:
    for name in ENCODED:
        kind = BLOCK_TYPES[name]
        stored = random_blocks(kind, 3, 2, seed=12)
        assert np.array_equal(join(kind, codes(kind, stored), block_scales(kind, stored)), stored)
