# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors' 4-bit floats (e2m1): ``nvfp4-pack-quantized`` and ``mxfp4-pack-quantized``.

weight_packed uint8 [rows, columns / 2], the first code in the low nibble, as canonical words have it: a view.
weight_scale per 16 columns in fp8, divided by one weight_global_scale (nvfp4), or per 32 a power of two, its exponent
plus 127 in a byte (mxfp4). Scales become fp32 or bf16, in which each is exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.forms.transposed_words import expect
from linnet.formats.header import TensorInfo
from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.elements import ElementName
from linnet.schemes.layouts import OWN

Array = npt.NDArray[Any]
ELEMENT: ElementName = "fp4_e2m1"
EXPONENT_BIAS = 127
NOT_A_NUMBER = 255
"""The byte of e8m0 that is no power of two."""


def fp4_scheme(module: str, scheme: LinearScheme, tensors: Mapping[str, TensorInfo], where: str) -> LinearScheme:
    """The prescribed scheme with the type its scales get here."""
    info = tensors.get(f"{module}.weight_scale")
    kinds = {"fp8_e4m3": "fp32", "uint8": "bf16"}
    if info is None or info.dtype not in kinds:
        found = "missing" if info is None else info.dtype
        raise CheckpointError(f"{where}: {module}.weight_scale is {found}; 4-bit floats have fp8_e4m3 or uint8 scales")
    return replace(scheme, weight=replace(scheme.weight, scale_dtype=kinds[info.dtype]))  # type: ignore[arg-type]


def read_fp4(
    module: str,
    scheme: LinearScheme,
    tensors: Mapping[str, TensorInfo],
    tensor: Callable[[str], Array],
    where: str,
) -> PackedWeight:
    """A module of 4-bit floats; ``scheme`` comes from ``fp4_scheme``."""
    shown, size = f"{where}: {module}", scheme.weight.group_size
    packed = tensor(f"{module}.weight_packed")
    if packed.dtype != np.uint8 or packed.ndim != 2 or 0 in packed.shape or size is None:
        raise CheckpointError(
            f"{shown}.weight_packed is {packed.dtype} {list(packed.shape)}; uint8 [rows, columns / 2]"
        )
    rows, columns = packed.shape[0], packed.shape[1] * 2
    if columns % size or columns % 8:
        raise CheckpointError(f"{shown}: group size {size} does not divide its {columns} columns")
    expect(module, "weight_scale", ("fp8_e4m3", "uint8"), (rows, columns // size), tensors, where)
    stored = tensor(f"{module}.weight_scale")
    if stored.dtype == np.uint8:
        scales = powers_of_two(stored, f"{shown}.weight_scale")
    else:
        scales = stored.astype(np.float32) / _global_scale(module, tensors, tensor, shown)
    arrays = {
        "weight_packed": np.ascontiguousarray(packed).view(np.int32),
        "weight_scale": scales,
        "weight_shape": np.array([rows, columns], np.int64),
    }
    weight = PackedWeight(scheme, (rows, columns), OWN, arrays)
    weight.check(shown)
    return weight


def powers_of_two(exponents: Array, shown: str) -> Array:
    """Bytes of e8m0 -> bf16, in which each is exact. CheckpointError if one is no number."""
    if (exponents == NOT_A_NUMBER).any():
        raise CheckpointError(f"{shown} holds NaN")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - EXPONENT_BIAS).astype(ml_dtypes.bfloat16)


def _global_scale(
    module: str, tensors: Mapping[str, TensorInfo], tensor: Callable[[str], Array], shown: str
) -> np.float32:
    name = f"{module}.weight_global_scale"
    value = tensor(name).reshape(-1).astype(np.float32) if name in tensors else np.zeros(0, np.float32)
    if value.size != 1 or not np.isfinite(value[0]) or value[0] <= 0:
        raise CheckpointError(f"{shown}.weight_global_scale must be one positive number, not {value[:4].tolist()}")
    return np.float32(value[0])
