# SPDX-License-Identifier: Apache-2.0
"""The table of GGUF block types (ggml's ``ggml-common.h``): one row says everything about a type."""

from typing import Any

import numpy as np

from linnet.schemes.elements import ELEMENTS
from linnet.schemes.gguf_blocks.block_type import BlockType, Codes
from linnet.schemes.gguf_blocks.planes import Plane
from linnet.schemes.gguf_blocks.sub_scales import HALF_BYTES, SIGNED_BYTES, SIXES, signed_planes
from linnet.schemes.gguf_blocks.threes import pack_threes, unpack_threes


def _fields(*fields: tuple[str, str, int] | tuple[str, str]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_HALVES_16 = (Plane("codes", 4, 16),)
_HALVES_32 = (Plane("codes", 4, 32),)
_FIFTH_BIT = Plane("high", 1, 1, 4)
_IN_TWO_BITS = (Plane("codes", 2, 32),)
_ROWS = (
    BlockType(
        "Q4_0", "int4", 32, 32, _fields(("scale", "<f2"), ("codes", "u1", 16)),
        _HALVES_16, -8, 7, offset=8,
    ),
    BlockType(
        "Q4_1", "int4", 32, 32, _fields(("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16)),
        _HALVES_16, 0, 15, minimum=True, added_minimum=True,
    ),
    BlockType(
        "Q5_0", "int5", 32, 32, _fields(("scale", "<f2"), ("high", "u1", 4), ("codes", "u1", 16)),
        (*_HALVES_16, _FIFTH_BIT), -16, 15, offset=16,
    ),
    BlockType(
        "Q5_1", "int5", 32, 32, _fields(("scale", "<f2"), ("minimum", "<f2"), ("high", "u1", 4), ("codes", "u1", 16)),
        (*_HALVES_16, _FIFTH_BIT), 0, 31, minimum=True, added_minimum=True,
    ),
    BlockType(
        "Q8_0", "int8", 32, 32, _fields(("scale", "<f2"), ("codes", "u1", 32)),
        (Plane("codes", 8, 32),), -128, 127,
    ),
    BlockType(
        "Q2_K", "int2", 256, 16,
        _fields(("scales", "u1", 16), ("codes", "u1", 64), ("scale", "<f2"), ("minimum", "<f2")),
        _IN_TWO_BITS, 0, 3, minimum=True, sub_scales=HALF_BYTES,
    ),
    BlockType(
        "Q3_K", "int3", 256, 16,
        _fields(("high", "u1", 32), ("codes", "u1", 64), ("scales_low", "u1", 8), ("scales_high", "u1", 4),
                ("scale", "<f2")),
        (*_IN_TWO_BITS, Plane("high", 1, 32, 2)), -4, 3, offset=4,
        sub_scales=signed_planes(6, Plane("scales_low", 4, 8), Plane("scales_high", 2, 4, 4)),
    ),
    BlockType(
        "Q4_K", "int4", 256, 32,
        _fields(("scale", "<f2"), ("minimum", "<f2"), ("scales", "u1", 12), ("codes", "u1", 128)),
        _HALVES_32, 0, 15, minimum=True, sub_scales=SIXES,
    ),
    BlockType(
        "Q5_K", "int5", 256, 32,
        _fields(("scale", "<f2"), ("minimum", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("codes", "u1", 128)),
        (*_HALVES_32, Plane("high", 1, 32, 4)), 0, 31, minimum=True, sub_scales=SIXES,
    ),
    BlockType(
        "Q6_K", "int6", 256, 16,
        _fields(("codes", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", "<f2")),
        (Plane("codes", 4, 64), Plane("high", 2, 32, 4)), -32, 31, offset=32, sub_scales=SIGNED_BYTES,
    ),
    BlockType(
        "IQ4_NL", "iq4_nl", 32, 32, _fields(("scale", "<f2"), ("codes", "u1", 16)),
        _HALVES_16, 0, 15, codebook=ELEMENTS["iq4_nl"].values,
    ),
    BlockType(
        "IQ4_XS", "iq4_nl", 256, 32,
        _fields(("scale", "<f2"), ("scales_high", "u1", 2), ("scales_low", "u1", 4), ("codes", "u1", 128)),
        _HALVES_16, 0, 15, codebook=ELEMENTS["iq4_nl"].values,
        sub_scales=signed_planes(6, Plane("scales_low", 4, 1), Plane("scales_high", 2, 1, 4)),
    ),
    BlockType(
        "MXFP4", "fp4_e2m1", 32, 32, _fields(("scale", "u1"), ("codes", "u1", 16)),
        _HALVES_16, 0, 15, codebook=ELEMENTS["fp4_e2m1"].values, scale_dtype="e8m0",
    ),
    BlockType(
        "TQ1_0", "ternary", 256, 256, _fields(("fives", "u1", 48), ("fours", "u1", 4), ("scale", "<f2")),
        Codes(unpack_threes, pack_threes), -1, 1, offset=1,
    ),
    BlockType(
        "TQ2_0", "ternary", 256, 256, _fields(("codes", "u1", 64), ("scale", "<f2")),
        _IN_TWO_BITS, -1, 1, offset=1,
    ),
)  # fmt: skip

BLOCK_TYPES: dict[str, BlockType] = {row.name: row for row in _ROWS}
"""Type name -> its row. F32, F16 and BF16 are no block types; IQ1 ... IQ3 and NVFP4 are not among them."""
