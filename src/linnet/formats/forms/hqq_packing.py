# SPDX-License-Identifier: Apache-2.0
"""How HQQ packs codes, whichever way its groups run, and what a layer's small tensors must say of it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.packed_rows import apart
from linnet.formats.forms.transposed_words import expect

Array = npt.NDArray[Any]
CODES = "W_q"
PACKINGS = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
"""Bits of a stored code -> HQQ's word for how codes lie together. 5 and 6 bits lie in bytes, 1.58 in two bits."""
PER_WORD = 10
"""Codes of three bits in an int32."""
MAX_PACKING_BYTES = 32


def code_bits(module: str, rows: int, tensors: Tensors, where: str, columns: int | None = None) -> tuple[int, int]:
    """Bits of a stored code and codes in a row, where there are so many rows of codes, and of so many ``columns`` if
    that is known. CheckpointError if the shape of the codes is that of no packing."""
    info = tensors[f"{module}.{CODES}"]
    if len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(f"{where}: {module}.{CODES} is {list(info.shape)}; HQQ's codes are two-dimensional")
    packed_rows = info.shape[0]
    row_bytes = info.nbytes // packed_rows
    bits, rest = divmod(8 * packed_rows, rows)
    if info.dtype != "int32" and not rest and bits in PACKINGS and columns in (None, row_bytes):
        return bits, row_bytes
    if packed_rows == -(-rows // PER_WORD) and row_bytes % 4 == 0 and columns in (None, row_bytes // 4):
        return 3, row_bytes // 4
    raise CheckpointError(
        f"{where}: {module}.{CODES} is {info.dtype} {list(info.shape)} for {rows} rows of "
        f"{'codes' if columns is None else f'{columns} codes'}; that is no packing of 8, 4, 3, 2 or 1 bits"
    )


def check_state(module: str, bits: int, axis: int, tensors: Tensors, tensor: ReadTensor, where: str) -> None:
    """What the layer's small tensors say must be what the shapes say, and something that is read here."""
    shown = f"{where}: {module}"
    for leaf in ("quant_scale", "quant_zero"):
        if f"{module}.{leaf}" in tensors and tensor(f"{module}.{leaf}").any():
            raise UnsupportedError(f"{shown}.{leaf}: scales and zeros that are quantised themselves are not supported")
    expect(module, "axis", ("int32", "int64", "uint8"), (), tensors, where)
    said_axis = int(tensor(f"{module}.axis").reshape(-1)[0])
    if said_axis != axis:
        raise CheckpointError(f"{shown}.axis is {said_axis}; the shape of its scales is that of axis {axis}")
    info = tensors.get(f"{module}.packing")
    if info is None or info.dtype != "uint8" or info.nbytes > MAX_PACKING_BYTES:
        raise CheckpointError(f"{shown}.packing must be the bytes of one of {', '.join(PACKINGS.values())}")
    said = tensor(f"{module}.packing").tobytes().decode("latin-1")
    if said != PACKINGS[bits]:
        raise CheckpointError(f"{shown}.packing is {said!r}; the shape of {CODES} is that of {PACKINGS[bits]}")


def unpacked(stored: Array, bits: int, columns: int) -> Array:
    """uint8 [rows of codes, columns], those that only fill the last words among them."""
    contiguous = np.ascontiguousarray(stored)
    if bits == 3:
        return apart(contiguous.view(np.uint32).reshape(-1, columns), bits, range(27, -1, -3))
    return apart(contiguous.view(np.uint8).reshape(-1, columns), bits, range(8 - bits, -1, -bits))
