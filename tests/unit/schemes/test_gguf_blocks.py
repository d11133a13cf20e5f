# SPDX-License-Identifier: Apache-2.0
"""GGUF's block types: every bit as ggml's own Python reads it, and back."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as ggml_dequantize
from gguf_random_blocks import random_blocks

from linnet.errors import CheckpointError
from linnet.schemes.gguf_blocks import (
    BLOCK_TYPES,
    BlockType,
    as_blocks,
    block_scales,
    check,
    codes,
    dequantize,
    join,
    minimums,
    scales,
)

KINDS = list(BLOCK_TYPES.values())
every_type = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@every_type
def test_sizes_are_ggml_s(kind: BlockType) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]] == (kind.columns, kind.nbytes)
    assert kind.bits_per_weight == 8 * kind.nbytes / kind.columns


@every_type
@pytest.mark.parametrize("seed", range(3))
def test_values_are_bit_equal_to_ggml_s(kind: BlockType, seed: int) -> None:
    rows, blocks = (3, 2) if kind.columns == 256 else (5, 9)
    stored = random_blocks(kind, rows, blocks, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = ggml_dequantize(stored.reshape(rows, -1), GGMLQuantizationType[kind.name])
        ours = dequantize(kind, stored)
    assert ours.dtype == np.float32
    assert ours.shape == (rows, blocks * kind.columns)
    assert np.array_equal(ours.view(np.uint32), expected.view(np.uint32))


@every_type
def test_values_are_codes_times_scales_less_minimums(kind: BlockType) -> None:
    stored = random_blocks(kind, 4, 3, seed=7)
    weight_codes, scale, minimum = codes(kind, stored), scales(kind, stored), minimums(kind, stored)
    assert weight_codes.dtype == (np.int8 if kind.smallest < 0 else np.uint8)
    assert (minimum is not None) == kind.minimum
    numbers = kind.codebook[weight_codes] if kind.codebook is not None else weight_codes.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        value = numbers * np.repeat(scale, kind.group, axis=1)
        if minimum is not None:
            value = value - np.repeat(minimum, kind.group, axis=1)
        assert np.array_equal(dequantize(kind, stored), value, equal_nan=True)


@every_type
def test_two_levels_of_scales_multiply_out(kind: BlockType) -> None:
    stored = random_blocks(kind, 4, 3, seed=8)
    parts = block_scales(kind, stored)
    assert (parts.scale_codes is not None) == (kind.scale_bits is not None) == (kind.super_group == 256)
    assert parts.scale.shape == (4, 3)
    if parts.scale_codes is None:
        return
    assert kind.scale_bits is not None
    assert int(parts.scale_codes.max()) < 2**kind.scale_bits
    wide = np.repeat(parts.scale.astype(np.float32), kind.groups, axis=1)
    assert np.array_equal(scales(kind, stored), wide * parts.scale_codes.astype(np.float32))


@every_type
def test_joined_again_it_is_the_same_block(kind: BlockType) -> None:
    stored = random_blocks(kind, 3, 4, seed=9)
    again = join(kind, np.clip(codes(kind, stored), kind.smallest, kind.largest), block_scales(kind, stored))
    if kind.element == "ternary":  # several bytes mean the same five digits, and a fourth code of two bits nothing
        again, stored = join(kind, codes(kind, again), block_scales(kind, again)), again
    assert np.array_equal(again, stored)


@every_type
def test_a_code_out_of_range_is_not_joined(kind: BlockType) -> None:
    if kind.bits == 8:
        pytest.skip("every byte is a code")
    stored = random_blocks(kind, 1, 1)
    wrong = np.clip(codes(kind, stored), kind.smallest, kind.largest)
    wrong[0, 5] = kind.largest + 1
    with pytest.raises(ValueError, match=f"{kind.name} codes range from {kind.smallest} to {kind.largest}"):
        join(kind, wrong, block_scales(kind, stored))


@every_type
def test_rows_stand_alone_and_need_not_be_contiguous(kind: BlockType) -> None:
    stored = random_blocks(kind, 6, 2, seed=10)
    assert np.array_equal(as_blocks(kind, stored.reshape(6, -1)), stored)
    for function in (codes, scales, dequantize):
        with np.errstate(over="ignore", invalid="ignore"):
            whole, every_other = function(kind, stored), function(kind, stored[::2])
        assert np.array_equal(every_other, whole[::2], equal_nan=True)


def test_many_chunks_are_one_weight() -> None:
    kind = BLOCK_TYPES["Q5_0"]
    stored = random_blocks(kind, 700, 11, seed=11)
    some = [3, 371, 699]
    assert np.array_equal(dequantize(kind, stored)[some], dequantize(kind, stored[some]))
    assert np.array_equal(join(kind, codes(kind, stored), block_scales(kind, stored)), stored)


@every_type
def test_scales_that_are_no_numbers_are_named(kind: BlockType) -> None:
    stored = random_blocks(kind, 3, 2, seed=12)
    block = stored.reshape(-1, kind.nbytes).view(kind.fields)[:, 0]
    if kind.name == "TQ2_0":
        block["codes"] &= 0x55
    check(kind, stored, "blk.0")
    field = "minimum" if kind.minimum else "scale"
    block[field][3] = 255 if kind.scale_dtype == "e8m0" else np.inf
    with pytest.raises(CheckpointError, match=rf"blk\.0: the {field} of block 1 of row 1 \({kind.name}\)"):
        check(kind, stored, "blk.0")


def test_the_fourth_code_of_two_bits_is_no_ternary_number() -> None:
    kind = BLOCK_TYPES["TQ2_0"]
    stored = random_blocks(kind, 2, 1, seed=13)
    stored[:, :, :64] = 0b10010010
    check(kind, stored, "blk.0")
    stored[1, 0, 17] = 0b10110010
    with pytest.raises(CheckpointError, match="hold the code 3"):
        check(kind, stored, "blk.0")


def test_a_type_is_one_row() -> None:
    """What a reader needs to know of Q4_K, in Linnet's words."""
    kind = BLOCK_TYPES["Q4_K"]
    assert (kind.element, kind.group, kind.minimum, kind.scale_bits, kind.super_group) == ("int4", 32, True, 6, 256)
    assert replace(kind, name="other").nbytes == 144
