# SPDX-License-Identifier: Apache-2.0
"""The canonical layout of a quantised linear: which tensors it stores, their types and shapes, bytes and bits.

Layouts are compressed-tensors' own (``pack-quantized``, ``int-quantized``, ``float-quantized``) and, for what it has
no word for, ``linnet`` (see docs/FORMAT.md). Names are relative to the module.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from linnet.schemes.codecs import CODEBOOKS, scale_shape
from linnet.schemes.groups import check_columns
from linnet.schemes.packing import packed_columns
from linnet.schemes.scheme import LinearScheme, Scheme

Layout = Literal["pack-quantized", "int-quantized", "float-quantized", "linnet"]

_BYTES = {"int8": 1, "fp8_e4m3": 1, "int32": 4, "int64": 8, "fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies on disk; dtype names as in ``TensorInfo``."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _BYTES[self.dtype] * prod(self.shape)


def layout_of(scheme: LinearScheme) -> Layout:
    """The canonical layout a scheme is written in."""
    element = scheme.weight.element
    if element in CODEBOOKS:
        return "linnet"
    if element == "fp8_e4m3":
        return "float-quantized"
    return "int-quantized" if element == "int8" and scheme.input is not None else "pack-quantized"


def stored_scale_shape(scheme: Scheme, shape: tuple[int, int]) -> tuple[int, ...]:
    """On disk a per-tensor scale is [1]; every other shape is the codec's."""
    return (1,) if scheme.granularity == "tensor" else scale_shape(scheme, shape)


def stored_tensors(
    scheme: LinearScheme, shape: tuple[int, int], layout: Layout | None = None
) -> dict[str, StoredTensor]:
    """Suffix (``weight_packed`` ...) -> dtype and shape of every tensor stored for a linear of this shape."""
    weight = scheme.weight
    check_columns("weight", shape[1], weight)
    layout = layout or layout_of(scheme)
    rows, columns = shape
    scales = stored_scale_shape(weight, shape)
    if layout == "int-quantized":
        tensors = {"weight": StoredTensor("int8", shape)}
    elif layout == "float-quantized":
        tensors = {"weight": StoredTensor("fp8_e4m3", shape)}
    else:
        tensors = {"weight_packed": StoredTensor("int32", (rows, packed_columns(columns, weight.bits)))}
    tensors["weight_scale"] = StoredTensor(weight.scale_dtype, scales)
    if not weight.symmetric:
        if layout == "pack-quantized" and weight.granularity in ("group", "channel"):
            tensors["weight_zero_point"] = StoredTensor("int32", (packed_columns(rows, weight.bits), scales[1]))
        else:
            tensors["weight_zero_point"] = StoredTensor("int8", scales)
    if layout in ("pack-quantized", "linnet"):
        tensors["weight_shape"] = StoredTensor("int64", (2,))
    return tensors


def stored_bytes(scheme: LinearScheme, shape: tuple[int, int]) -> int:
    """Bytes of all tensors of a linear on disk, exact; file headers and alignment not counted."""
    return sum(tensor.nbytes for tensor in stored_tensors(scheme, shape).values())


def bits_per_weight(scheme: LinearScheme, shape: tuple[int, int]) -> float:
    """Stored bits per element, scales, zero points and the shape record included."""
    return 8 * stored_bytes(scheme, shape) / prod(shape)
