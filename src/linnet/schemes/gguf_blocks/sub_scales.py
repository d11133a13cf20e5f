# SPDX-License-Identifier: Apache-2.0
"""The scales of two-level block types: small integers, several to a byte."""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks.block_type import SubScales
from linnet.schemes.gguf_blocks.planes import Plane, pack, unpack

Array = npt.NDArray[Any]


def signed_planes(bits: int, *planes: Plane) -> SubScales:
    """Scale codes of ``bits`` bits stored with 2 ** (bits - 1) added, no minimums (Q3_K, IQ4_XS)."""
    offset = np.uint8(2 ** (bits - 1))

    def read(block: Array) -> tuple[Array, None]:
        return (unpack(block, planes) - offset).view(np.int8), None

    def write(scale_codes: Array, minimum_codes: Array | None, block: Array) -> None:
        pack(scale_codes.astype(np.int8).view(np.uint8) + offset, planes, block)

    return SubScales(bits, -int(offset), int(offset) - 1, read, write)


def _read_bytes(block: Array) -> tuple[Array, None]:
    return np.ascontiguousarray(block["scales"]), None


def _write_bytes(scale_codes: Array, minimum_codes: Array | None, block: Array) -> None:
    block["scales"] = scale_codes


SIGNED_BYTES = SubScales(8, -128, 127, _read_bytes, _write_bytes)
"""Q6_K: a signed byte each."""


def _read_halves(block: Array) -> tuple[Array, Array]:
    stored = np.ascontiguousarray(block["scales"])
    return stored & np.uint8(15), stored >> np.uint8(4)


def _write_halves(scale_codes: Array, minimum_codes: Array | None, block: Array) -> None:
    assert minimum_codes is not None
    block["scales"] = scale_codes.astype(np.uint8) | (minimum_codes.astype(np.uint8) << np.uint8(4))


HALF_BYTES = SubScales(4, 0, 15, _read_halves, _write_halves)
"""Q2_K: scale in the low half of a byte, minimum in the high half."""


def _read_sixes(block: Array) -> tuple[Array, Array]:
    stored = np.ascontiguousarray(block["scales"]).reshape(-1, 3, 4)
    scale, minimum, rest = stored[:, 0], stored[:, 1], stored[:, 2]
    high = np.uint8(0x30)
    scales = np.concatenate([scale & np.uint8(63), (rest & np.uint8(15)) | ((scale >> np.uint8(2)) & high)], axis=1)
    minimums = np.concatenate(
        [minimum & np.uint8(63), (rest >> np.uint8(4)) | ((minimum >> np.uint8(2)) & high)], axis=1
    )
    return scales, minimums


def _write_sixes(scale_codes: Array, minimum_codes: Array | None, block: Array) -> None:
    assert minimum_codes is not None
    scales, minimums = scale_codes.astype(np.uint8), minimum_codes.astype(np.uint8)
    stored = np.empty((len(scales), 3, 4), np.uint8)
    for place, codes in enumerate((scales, minimums)):
        stored[:, place] = codes[:, :4] | ((codes[:, 4:] >> np.uint8(4)) << np.uint8(6))
    stored[:, 2] = (scales[:, 4:] & np.uint8(15)) | (minimums[:, 4:] << np.uint8(4))
    block["scales"] = stored.reshape(-1, 12)


SIXES = SubScales(6, 0, 63, _read_sixes, _write_sixes)
"""Q4_K and Q5_K: eight scales and eight minimums of six bits in twelve bytes.

Bytes 0-3 and 4-7: scales and minimums of groups 0-3 in the low six bits, the two high bits of those of groups 4-7 above
them; bytes 8-11: the low halves of the latter, scale below minimum.
"""
