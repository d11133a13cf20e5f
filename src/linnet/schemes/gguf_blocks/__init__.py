# SPDX-License-Identifier: Apache-2.0
"""GGUF's block types as numbers, both directions."""

from linnet.schemes.gguf_blocks.block_type import BlockScales, BlockType
from linnet.schemes.gguf_blocks.encode import ENCODED, encode
from linnet.schemes.gguf_blocks.exact import exact_blocks
from linnet.schemes.gguf_blocks.table import BLOCK_TYPES
from linnet.schemes.gguf_blocks.weights import (
    as_blocks,
    block_scales,
    check,
    codes,
    dequantize,
    join,
    minimums,
    scales,
)

__all__ = [
    "BLOCK_TYPES",
    "ENCODED",
    "BlockScales",
    "BlockType",
    "as_blocks",
    "block_scales",
    "check",
    "codes",
    "dequantize",
    "encode",
    "exact_blocks",
    "join",
    "minimums",
    "scales",
]
