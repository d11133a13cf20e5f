# SPDX-License-Identifier: Apache-2.0
"""Whole weights out of blocks and back. Blocks are uint8 [rows, blocks, block bytes], weights [rows, columns].

Values are bit-equal to ggml's own (``dequantize_row_*``): every product of a scale code with its fp16 scale is exact in
fp32, so a weight is rounded once in code * scale and, where there is a minimum, once more in the subtraction; the order
is ggml's. Works through a few rows at a time: temporaries stay in cache.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.schemes.gguf_blocks.block_type import BlockScales, BlockType, Codes
from linnet.schemes.gguf_blocks.planes import pack, unpack

Array = npt.NDArray[Any]

_CHUNK_ELEMENTS = 1 << 17


def as_blocks(kind: BlockType, stored: Array) -> Array:
    """uint8 [rows, bytes per row] as it lies in the file -> a view [rows, blocks, block bytes]."""
    return stored.reshape(len(stored), -1, kind.nbytes)


def codes(kind: BlockType, blocks: Array) -> Array:
    """Codes [rows, columns]: int8 signed, or uint8 (types with minimums, codebook indices)."""
    rows, count, _ = blocks.shape
    signed = kind.smallest < 0
    result = np.empty((rows * count, kind.columns), np.int8 if signed else np.uint8)
    for part, block in _chunks(kind, blocks):
        result[part] = _codes(kind, block)
    return result.reshape(rows, count * kind.columns)


def block_scales(kind: BlockType, blocks: Array) -> BlockScales:
    """Scales and minimums as stored, in both levels."""
    rows, count, _ = blocks.shape
    block = _structured(kind, blocks)
    scale = np.ascontiguousarray(block["scale"]).reshape(rows, count)
    minimum = np.ascontiguousarray(block["minimum"]).reshape(rows, count) if kind.minimum else None
    if minimum is not None and kind.added_minimum:
        minimum = -minimum
    if kind.sub_scales is None:
        return BlockScales(scale, minimum)
    scale_codes, minimum_codes = kind.sub_scales.unpack(block)
    shape = (rows, count * kind.groups)
    return BlockScales(
        scale, minimum, scale_codes.reshape(shape), None if minimum_codes is None else minimum_codes.reshape(shape)
    )


def scales(kind: BlockType, blocks: Array) -> Array:
    """fp32 [rows, groups]."""
    return scales_of(kind, block_scales(kind, blocks))


def minimums(kind: BlockType, blocks: Array) -> Array | None:
    """fp32 [rows, groups], to be subtracted; None where the type has none."""
    return minimums_of(kind, block_scales(kind, blocks))


def scales_of(kind: BlockType, stored: BlockScales) -> Array:
    """fp32 [rows, groups]: the scale of the block, times the code of the group."""
    scale = from_e8m0(stored.scale) if kind.scale_dtype == "e8m0" else stored.scale.astype(np.float32)
    return _expanded(kind, scale, stored.scale_codes)


def minimums_of(kind: BlockType, stored: BlockScales) -> Array | None:
    """fp32 [rows, groups], to be subtracted; None where the type has none."""
    if stored.minimum is None:
        return None
    return _expanded(kind, stored.minimum.astype(np.float32), stored.minimum_codes)


def dequantize(kind: BlockType, blocks: Array) -> Array:
    """fp32 [rows, columns]: code * scale, or code * scale - minimum; a codebook's value in place of its code."""
    rows, count, _ = blocks.shape
    result = np.empty((rows * count, kind.groups, kind.group), np.float32)
    for part, block in _chunks(kind, blocks):
        own = block_scales(kind, block.view(np.uint8).reshape(1, len(block), kind.nbytes))
        shape = (len(block), kind.groups, 1)
        values, out = _codes(kind, block).reshape(-1, kind.groups, kind.group), result[part]
        if kind.codebook is not None:
            np.take(kind.codebook, values, out=out)
            out *= scales_of(kind, own).reshape(shape)
        else:
            np.multiply(values, scales_of(kind, own).reshape(shape), out=out, dtype=np.float32)
        minimum = minimums_of(kind, own)
        if minimum is not None:
            out -= minimum.reshape(shape)
    return result.reshape(rows, count * kind.columns)


def join(kind: BlockType, weight_codes: Array, stored: BlockScales) -> Array:
    """Codes [rows, columns] and scales as stored -> blocks [rows, blocks, block bytes]; inverse of ``codes`` and
    ``block_scales``. ValueError if a code is out of range."""
    rows, columns = weight_codes.shape
    count = rows * (columns // kind.columns)
    low, high = int(weight_codes.min(initial=0)), int(weight_codes.max(initial=0))
    if low < kind.smallest or high > kind.largest:
        raise ValueError(f"{kind.name} codes range from {kind.smallest} to {kind.largest}, not {low} to {high}")
    block = np.zeros(count, kind.fields)
    block["scale"] = stored.scale.reshape(count)
    if stored.minimum is not None:
        block["minimum"] = (-stored.minimum if kind.added_minimum else stored.minimum).reshape(count)
    if kind.sub_scales is not None:
        assert stored.scale_codes is not None
        minimum_codes = None if stored.minimum_codes is None else stored.minimum_codes.reshape(count, -1)
        kind.sub_scales.pack(stored.scale_codes.reshape(count, -1), minimum_codes, block)
    flat = weight_codes.reshape(count, kind.columns)
    step = max(1, _CHUNK_ELEMENTS // kind.columns)
    for start in range(0, count, step):
        part = slice(start, start + step)
        unsigned = flat[part].astype(np.uint8) + np.uint8(kind.offset)
        if isinstance(kind.codes, Codes):
            kind.codes.pack(unsigned, block[part])
        else:
            pack(unsigned, kind.codes, block[part])
    return block.view(np.uint8).reshape(rows, columns // kind.columns, kind.nbytes)


def check(kind: BlockType, blocks: Array, where: str) -> None:
    """CheckpointError naming ``where`` if a scale is not finite or a code has no meaning (TQ2_0's fourth)."""
    stored = _structured(kind, blocks)
    for field in ("scale", "minimum"):
        if field not in (kind.fields.names or ()):
            continue
        values = stored[field]
        finite = values != 255 if kind.scale_dtype == "e8m0" else np.isfinite(values)
        if not finite.all():
            at = int(np.argmin(finite))
            row, block = divmod(at, blocks.shape[1])
            raise CheckpointError(
                f"{where}: the {field} of block {block} of row {row} ({kind.name}) is {values[at]}, not a number"
            )
    if kind.name == "TQ2_0":
        for part, block_part in _chunks(kind, blocks):
            bytes_ = block_part["codes"]
            if (bytes_ & (bytes_ >> np.uint8(1)) & np.uint8(0x55)).any():
                raise CheckpointError(f"{where}: blocks from {part.start} on hold the code 3; TQ2_0 means 0, 1 and 2")


def from_e8m0(exponents: Array) -> Array:
    """uint8 powers of two with bias 127 -> fp32; 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1)."""
    return _POWERS_OF_TWO[exponents]


_POWERS_OF_TWO = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))


def _expanded(kind: BlockType, scale: Array, group_codes: Array | None) -> Array:
    if group_codes is None:
        return scale
    wide = group_codes.reshape(*scale.shape, kind.groups).astype(np.float32)
    wide *= scale[..., None]
    return wide.reshape(len(scale), -1)


def _codes(kind: BlockType, block: Array) -> Array:
    """Structured blocks [n] -> [n, columns], int8 or uint8."""
    unsigned = kind.codes.unpack(block) if isinstance(kind.codes, Codes) else unpack(block, kind.codes)
    if kind.offset:
        unsigned = unsigned - np.uint8(kind.offset)
    return unsigned.view(np.int8) if kind.smallest < 0 else unsigned


def _structured(kind: BlockType, blocks: Array) -> Array:
    return np.ascontiguousarray(blocks).reshape(-1, kind.nbytes).view(kind.fields)[:, 0]


def _chunks(kind: BlockType, blocks: Array) -> Iterator[tuple[slice, Array]]:
    flat = _structured(kind, blocks)
    step = max(1, _CHUNK_ELEMENTS // kind.columns)
    for start in range(0, len(flat), step):
        yield slice(start, min(len(flat), start + step)), flat[start : start + step]
