# SPDX-License-Identifier: Apache-2.0
"""HQQ's weights with ``axis=0``: groups that run down the rows.

A weight [rows, columns] is seen as [group size, rest]: flat places i, i + rest, i + 2 rest ... share ``scale`` and
``zero`` [1, rest]. Where the group size divides the rows, rest is a whole number of rows, and every weight of a row has
numbers of its own. No scheme of the kernels says that (their groups lie along a row), so such a weight is shown dense:
fp32, (code - zero) * scale, as HQQ itself computes it in fp32.
"""

from math import prod

import numpy as np

from linnet.errors import CheckpointError
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.hqq_packing import CODES, check_state, code_bits, unpacked
from linnet.formats.forms.transposed_words import Array, expect


def modules_down_the_rows(tensors: Tensors) -> list[str]:
    """The modules whose scales are [1, more than one]."""
    codes = [name.removesuffix(f".{CODES}") for name in tensors if name.endswith(f".{CODES}")]
    return [module for module in codes if lies_down_the_rows(module, tensors)]


def lies_down_the_rows(module: str, tensors: Tensors) -> bool:
    """By the shape of its scales."""
    info = tensors.get(f"{module}.scale")
    return info is not None and len(info.shape) == 2 and info.shape[0] == 1 < info.shape[1]


def shape_down_the_rows(module: str, tensors: Tensors, tensor: ReadTensor, where: str) -> tuple[int, int]:
    """[rows, columns]. CheckpointError if codes and scales are not those of such a weight."""
    expect(module, "shape", ("int64", "int32"), (2,), tensors, where)
    rows, columns = (int(size) for size in tensor(f"{module}.shape"))
    scale_type(module, "scale", tensors, where)
    rest = tensors[f"{module}.scale"].shape[1]
    if rows < 1 or columns < 1 or rows * columns % rest:
        raise CheckpointError(f"{where}: {module}.shape is {[rows, columns]}, which {rest} scales do not divide")
    code_bits(module, rows * columns // rest, tensors, where, rest)
    return rows, columns


def values_down_the_rows(module: str, tensors: Tensors, tensor: ReadTensor, where: str) -> Array:
    """fp32 [rows, columns]. CheckpointError: parts missing or of other shapes, scales that are not finite."""
    shape = shape_down_the_rows(module, tensors, tensor, where)
    info = tensors[f"{module}.scale"]
    columns = info.shape[1]
    size = prod(shape) // columns
    bits, _ = code_bits(module, size, tensors, where, columns)
    check_state(module, bits, 0, tensors, tensor, where)
    expect(module, "zero", (info.dtype,), info.shape, tensors, where)
    scales, zeros = (tensor(f"{module}.{leaf}").astype(np.float32) for leaf in ("scale", "zero"))
    if not (np.isfinite(scales).all() and np.isfinite(zeros).all()):
        raise CheckpointError(f"{where}: {module} has NaN or infinity among its scales or zeros")
    values = unpacked(tensor(f"{module}.{CODES}"), bits, columns)[:size].astype(np.float32)
    values -= zeros
    values *= scales
    return values.reshape(shape)
