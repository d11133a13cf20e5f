# SPDX-License-Identifier: Apache-2.0
"""From a module's tensors to a PackedWeight: which layout lies there, and does it agree with its scheme."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.column_order import sorted_columns
from linnet.formats.forms.base import scale_type
from linnet.formats.forms.fp4_linear import ELEMENT as FP4
from linnet.formats.forms.fp4_linear import fp4_scheme, read_fp4
from linnet.formats.header import TensorInfo
from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.layouts import (
    CODEBOOK,
    DIGITS,
    DIGITS_TENSOR,
    FLOAT_QUANTIZED,
    INT_QUANTIZED,
    OWN,
    PACK_QUANTIZED,
    Layout,
)
from linnet.schemes.layouts.digits import pack_digits
from linnet.schemes.packing import PACKABLE_BITS, pack_rows, packed_columns, unpack_rows

Array = npt.NDArray[Any]
_OPTIONAL = ("weight_zero_point", "weight_shape", "input_scale", "input_zero_point")
_QUANTISED_DTYPES = ("int8", "fp8_e4m3")


def is_packed(module: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a module's weight is stored as codes, by its tensors alone."""
    if f"{module}.weight_packed" in tensors or f"{module}.{DIGITS_TENSOR}" in tensors:
        return True
    weight = tensors.get(f"{module}.weight")
    return weight is not None and weight.dtype in _QUANTISED_DTYPES


def stored_scheme(module: str, scheme: LinearScheme, tensors: Mapping[str, TensorInfo], where: str) -> LinearScheme:
    """The prescribed scheme with the scale's type as it lies on disk."""
    if scheme.weight.element == FP4:
        return fp4_scheme(module, scheme, tensors, where)
    if scheme.weight.numbers.learned:
        if f"{module}.{CODEBOOK}" not in tensors:
            raise CheckpointError(
                f"{where}: {module}.{CODEBOOK} is missing, the codes of {module} mean nothing without it"
            )
        return scheme
    dtype = scale_type(module, "weight_scale", tensors, where)
    if scheme.input is not None and not scheme.input.dynamic and f"{module}.input_scale" not in tensors:
        raise CheckpointError(f"{where}: {module}.input_scale is missing, static activations need it")
    if scheme.sorted_columns and f"{module}.weight_g_idx" not in tensors:
        raise CheckpointError(f"{where}: {module}.weight_g_idx is missing, which actorder (activation order) needs")
    return replace(scheme, weight=replace(scheme.weight, scale_dtype=dtype))


def read_packed(
    module: str,
    scheme: LinearScheme,
    tensors: Mapping[str, TensorInfo],
    tensor: Callable[[str], Array],
    where: str,
) -> PackedWeight:
    """Assemble and check a quantised module; ``scheme`` comes from ``stored_scheme``."""
    if scheme.weight.element == FP4:
        return read_fp4(module, scheme, tensors, tensor, where)
    shown = f"{where}: {module}"
    if not scheme.sorted_columns:
        _check_order(module, tensors, tensor, scheme, shown)
    values = CODEBOOK if scheme.weight.numbers.learned else "weight_scale"
    arrays = {values: tensor(f"{module}.{values}")}
    for suffix in _OPTIONAL:
        if f"{module}.{suffix}" in tensors:
            arrays[suffix] = tensor(f"{module}.{suffix}")
    if scheme.weight.symmetric and "weight_zero_point" in arrays:
        if arrays["weight_zero_point"].any():
            raise CheckpointError(f"{shown}.weight_zero_point is not zero although the scheme is symmetric")
        del arrays["weight_zero_point"]
    layout: Layout
    if f"{module}.{DIGITS_TENSOR}" in tensors:
        layout = DIGITS
        arrays[DIGITS_TENSOR] = tensor(f"{module}.{DIGITS_TENSOR}")
        shape = _digits_shape(arrays, scheme, shown)
    elif f"{module}.weight_packed" in tensors:
        layout = OWN if scheme.weight.numbers.kind == "codebook" else PACK_QUANTIZED
        arrays["weight_packed"] = tensor(f"{module}.weight_packed")
        shape = _packed_shape(arrays, scheme, shown)
    else:
        weight = arrays["weight"] = tensor(f"{module}.weight")
        layout = FLOAT_QUANTIZED if tensors[f"{module}.weight"].dtype == "fp8_e4m3" else INT_QUANTIZED
        arrays.pop("weight_shape", None)
        if weight.ndim != 2 or (layout is INT_QUANTIZED) != scheme.weight.numbers.integer:
            raise CheckpointError(
                f"{shown}.weight is {tensors[f'{module}.weight'].dtype} {list(weight.shape)}, "
                f"its scheme says {scheme.weight.element} in two dimensions"
            )
        shape = (weight.shape[0], weight.shape[1])
    if 0 in shape:
        raise CheckpointError(f"{shown} is a quantised weight of shape {list(shape)}; it must have rows and columns")
    group = scheme.weight.group_size
    if group is not None and shape[1] % group:
        raise CheckpointError(f"{shown}: group size {group} does not divide its {shape[1]} columns")
    _canonical_shapes(arrays, scheme, shape)
    check_static_input(arrays, scheme, shown)
    if scheme.sorted_columns:
        _sort_columns(arrays, scheme, shape, tensor(f"{module}.weight_g_idx"), shown)
    packed = PackedWeight(scheme, shape, layout, arrays)
    packed.check(shown)
    return packed


def _packed_shape(arrays: dict[str, Array], scheme: LinearScheme, shown: str) -> tuple[int, int]:
    """Logical [rows, columns] from weight_shape, or from the words where that is unambiguous."""
    packed, bits = arrays["weight_packed"], scheme.weight.bits
    if packed.ndim != 2 or packed.dtype != np.int32:
        raise CheckpointError(
            f"{shown}.weight_packed is {packed.dtype} {list(packed.shape)}, int32 [rows, words] is needed"
        )
    if not scheme.weight.numbers.packable or bits not in PACKABLE_BITS:
        raise CheckpointError(f"{shown}.weight_packed holds packed integers, its scheme says {scheme.weight.element}")
    rows, words = packed.shape
    stated = arrays.get("weight_shape")
    if stated is None:
        if words * 32 % bits:
            raise CheckpointError(f"{shown}.weight_shape is missing")
        columns = words * 32 // bits
        arrays["weight_shape"] = np.array([rows, columns], dtype=np.int64)
        return rows, columns
    if stated.size != 2 or stated.dtype.kind != "i" or int(stated.min()) < 1:
        raise CheckpointError(f"{shown}.weight_shape must be two positive integers")
    arrays["weight_shape"] = stated.reshape(2).astype(np.int64, copy=False)
    columns = int(stated.reshape(2)[1])
    if int(stated.reshape(2)[0]) != rows or packed_columns(columns, bits) != words:
        hint = " (packed by an old compressed-tensors with unused bits?)" if bits == 3 else ""
        raise CheckpointError(
            f"{shown}.weight_packed has {rows} rows of {words} words, weight_shape {stated.tolist()} "
            f"needs {packed_columns(columns, bits)} words{hint}"
        )
    return rows, columns


def _digits_shape(arrays: dict[str, Array], scheme: LinearScheme, shown: str) -> tuple[int, int]:
    """Logical [rows, columns] from weight_shape."""
    stated = arrays.get("weight_shape")
    if stated is None or stated.size != 2 or stated.dtype.kind != "i" or int(stated.min()) < 1:
        raise CheckpointError(f"{shown}.weight_shape must be two positive integers")
    if not scheme.weight.numbers.few:
        raise CheckpointError(f"{shown}.{DIGITS_TENSOR} holds digits, its scheme says {scheme.weight.element}")
    arrays["weight_shape"] = stated.reshape(2).astype(np.int64, copy=False)
    rows, columns = stated.reshape(2).tolist()
    return int(rows), int(columns)


def _canonical_shapes(arrays: dict[str, Array], scheme: LinearScheme, shape: tuple[int, int]) -> None:
    """Views that only differ in form: scalar or flat scales, zero points that older versions did not pack."""
    weight = scheme.weight
    if weight.numbers.learned:
        return
    arrays["weight_scale"] = canonical_scale(arrays["weight_scale"], scheme, shape)
    zero_point = arrays.get("weight_zero_point")
    if zero_point is None:
        return
    if weight.granularity == "tensor" and zero_point.size == 1:
        arrays["weight_zero_point"] = zero_point.reshape(1)
    elif zero_point.dtype == np.int8 and zero_point.size == arrays["weight_scale"].size:
        zero_point = zero_point.reshape(arrays["weight_scale"].shape)
        limit = 2 ** (weight.bits - 1)
        inside = zero_point.size > 0 and -limit <= int(zero_point.min()) and int(zero_point.max()) < limit
        if "weight_packed" in arrays and weight.granularity in ("group", "channel") and inside:
            unsigned = (zero_point.astype(np.int16) + limit).astype(np.uint8)
            zero_point = np.ascontiguousarray(pack_rows(np.ascontiguousarray(unsigned.T), weight.bits).T)
        arrays["weight_zero_point"] = zero_point


def canonical_scale(scale: Array, scheme: LinearScheme, shape: tuple[int, int]) -> Array:
    """A scalar or flat scale in the canonical shape; any other as it is."""
    if scheme.weight.granularity == "tensor" and scale.size == 1:
        return scale.reshape(1)
    if scheme.weight.granularity == "channel" and scale.shape == (shape[0],):
        return scale.reshape(-1, 1)
    return scale


def check_static_input(arrays: dict[str, Array], scheme: LinearScheme, shown: str) -> None:
    """One scale, and one zero point if asymmetric (0 where none is stored), for all activations; else neither."""
    scale, zero_point = arrays.pop("input_scale", None), arrays.pop("input_zero_point", None)
    prescribed = scheme.input
    if prescribed is None or prescribed.dynamic or prescribed.granularity != "tensor" or scale is None:
        return
    value = scale.reshape(-1).astype(np.float32)
    if value.size != 1 or not np.isfinite(value[0]) or value[0] <= 0:
        raise CheckpointError(f"{shown}.input_scale must be one positive number, not {value[:4].tolist()}")
    arrays["input_scale"] = value
    if prescribed.symmetric:
        return
    zero = np.zeros(1, np.float32) if zero_point is None else zero_point.reshape(-1).astype(np.float32)
    if zero.size != 1 or not prescribed.numbers.smallest <= zero[0] <= prescribed.numbers.largest:
        raise CheckpointError(
            f"{shown}.input_zero_point must be one number of its codes' range, not {zero[:4].tolist()}"
        )
    arrays["input_zero_point"] = zero


def _sort_columns(
    arrays: dict[str, Array], scheme: LinearScheme, shape: tuple[int, int], index: Array, shown: str
) -> None:
    """Codes in the order of their groups, and that order: see LinearScheme.sorted_columns."""
    columns, bits = shape[1], scheme.weight.bits
    order = sorted_columns(index, scheme.weight.group_size or columns, columns, f"{shown}.weight_g_idx")
    if "weight" in arrays:
        arrays["weight"] = np.ascontiguousarray(arrays["weight"][:, order])
    elif DIGITS_TENSOR in arrays:
        DIGITS.check(arrays, scheme, shape, shown)  # what is packed anew would pass
        codes = DIGITS.codes(arrays, scheme, shape)[:, order]
        arrays[DIGITS_TENSOR] = pack_digits(codes, scheme.weight.numbers)
    else:
        unsigned = unpack_rows(arrays["weight_packed"], bits, columns, 0).view(np.uint8)
        arrays["weight_packed"] = pack_rows(unsigned[:, order], bits)
    arrays["column_order"] = order


def _check_order(
    module: str, tensors: Mapping[str, TensorInfo], tensor: Callable[[str], Array], scheme: LinearScheme, shown: str
) -> None:
    """Columns in activation order (a group index that is not 0, 0, ... 1, 1, ...) are refused."""
    if f"{module}.weight_g_idx" not in tensors:
        return
    index = tensor(f"{module}.weight_g_idx").reshape(-1)
    trivial = bool((index == -1).all())
    if not trivial and scheme.weight.group_size is not None:
        trivial = bool((index == np.arange(index.size) // scheme.weight.group_size).all())
    if not trivial:
        raise UnsupportedError(f"{shown}.weight_g_idx orders columns by activation, which is not supported")
