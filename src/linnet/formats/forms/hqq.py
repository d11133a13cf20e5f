# SPDX-License-Identifier: Apache-2.0
"""HQQ's form, as its library (``save_to_safetensors``) and transformers write it: ``W_q``, ``scale``, ``zero``,
``shape`` and what else a layer's state holds, one small tensor each.

With axis 1 a weight is seen as [groups, group size], row after row. ``W_q`` packs those rows, not their columns
(packed_rows.py), the first in the highest bits: in uint8, or ten codes of three bits to an int32; ``view_as_float``
calls the same bytes by another type. ``scale`` and ``zero`` [groups, 1] are floats; a weight is (code - zero) * scale,
which is code * scale - zero * scale.

Both numbers are widened to fp32, in which that product is exact for 16-bit ones: a weight is the exact value rounded
once. So is HQQ's own in fp32, but where a code less a zero of many small bits had to be rounded before (fp16 zeros
below 2^-6 with 8 bits, 2^-10 with 4). In 16 bits HQQ rounds both steps to 16 bits. Codes of one bit lie here in two.

With axis 0 groups run down the rows (hqq_rows.py).
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.hqq_packing import CODES, check_state, code_bits, unpacked
from linnet.formats.forms.hqq_rows import modules_down_the_rows, shape_down_the_rows, values_down_the_rows
from linnet.formats.forms.packed_rows import with_minimums
from linnet.formats.forms.transposed_words import expect
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight, Scheme

Array = npt.NDArray[Any]


class Hqq:
    """Implements ``Form``."""

    methods: tuple[str, ...] = ("hqq",)
    suffixes: tuple[str, ...] = (CODES,)
    repacks = True

    def for_record(self, record: Mapping[str, Any], where: str) -> "Hqq":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. Every module says in tensors how it lies; HQQ itself writes no record at all."""
        wanted = record.get("quant_config") or {}
        if not isinstance(wanted, dict):
            raise CheckpointError(f"{where}: quant_config must be an object, not {wanted!r:.80}")
        return Quantization("hqq")

    def plain_modules(self, tensors: Tensors, tensor: ReadTensor, where: str) -> dict[str, tuple[int, int]]:
        """See Spread.plain_modules: those with axis 0."""
        modules = modules_down_the_rows(tensors)
        return {module: shape_down_the_rows(module, tensors, tensor, where) for module in modules}

    def plain_values(self, module: str, tensors: Tensors, tensor: ReadTensor, where: str) -> Array:
        """See Spread.plain_values."""
        return values_down_the_rows(module, tensors, tensor, where)

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return f"{module}.{CODES}" in tensors

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        bits, size = _bits_and_group(module, tensors, where)
        element = f"int{max(bits, 2)}"
        weight = Scheme(cast(Any, element), "group", size, symmetric=False, scale_dtype="fp32", minimum=True)
        return LinearScheme(weight)

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        shown = f"{where}: {module}"
        expect(module, "shape", ("int64", "int32"), (2,), tensors, where)
        rows, columns = (int(size) for size in tensor(f"{module}.shape"))
        size, groups = scheme.weight.group_size, tensors[f"{module}.scale"].shape[0]
        assert size is not None
        if rows < 1 or columns < 1 or rows * columns != groups * size:
            raise CheckpointError(
                f"{shown}.shape is {[rows, columns]}; its {groups} scales and groups of {size} lead to "
                f"{groups * size} numbers"
            )
        if columns % size:
            raise UnsupportedError(f"{shown}: groups of {size} numbers cross rows of {columns}, which is not supported")
        return rows, columns

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        shown = f"{where}: {module}"
        shape = self.shape(module, scheme, tensors, tensor, where)
        bits, size = _bits_and_group(module, tensors, where)
        check_state(module, bits, 1, tensors, tensor, where)
        scale_shape = tensors[f"{module}.scale"].shape
        expect(module, "zero", (tensors[f"{module}.scale"].dtype,), scale_shape, tensors, where)
        codes = unpacked(tensor(f"{module}.{CODES}"), bits, size)[: scale_shape[0]]
        scales = tensor(f"{module}.scale").astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # which is checked
            minimums = tensor(f"{module}.zero").astype(np.float32) * scales
        return with_minimums(codes, scales, minimums, scheme, shape, shown)


def _bits_and_group(module: str, tensors: Tensors, where: str) -> tuple[int, int]:
    """Bits of a stored code and columns of a group, by the shapes of the codes and of their scales."""
    shown = f"{where}: {module}"
    if f"{module}.scale" not in tensors and f"{module}.scale_q" in tensors:
        raise UnsupportedError(f"{shown}.scale_q: scales that are quantised themselves are not supported")
    scale_type(module, "scale", tensors, where)
    scale = tensors[f"{module}.scale"].shape
    if len(scale) != 2 or scale[1] != 1 or scale[0] < 1:
        raise CheckpointError(f"{shown} has scales {list(scale)}; HQQ's are [groups, 1], or [1, groups] with axis 0")
    return code_bits(module, scale[0], tensors, where)
