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
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.packed_rows import apart, with_minimums
from linnet.formats.forms.transposed_words import expect
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight, Scheme

Array = npt.NDArray[Any]
CODES = "W_q"
PACKINGS = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
"""Bits of a stored code -> HQQ's word for how codes lie together. 5 and 6 bits lie in bytes, 1.58 in two bits."""
PER_WORD = 10
"""Codes of three bits in an int32."""
MAX_PACKING_BYTES = 32
AXIS_0 = "axis 0 (groups that run down the rows) is not supported; HQQ's axis=1 is"


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
        for rule in (wanted, *wanted.values()):  # one for all linears, or one per kind of them
            weights = rule.get("weight_quant_params") if isinstance(rule, dict) else None
            if isinstance(weights, dict) and weights.get("axis") == 0:
                raise UnsupportedError(f"{where}: quant_config: {AXIS_0}")
        return Quantization("hqq")

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
        _check_state(module, bits, tensors, tensor, where)
        scale_shape = tensors[f"{module}.scale"].shape
        expect(module, "zero", (tensors[f"{module}.scale"].dtype,), scale_shape, tensors, where)
        codes = _unpacked(tensor(f"{module}.{CODES}"), bits, size)[: scale_shape[0]]
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
    scale, codes = tensors[f"{module}.scale"].shape, tensors[f"{module}.{CODES}"]
    if len(scale) == 2 and scale[0] == 1 < scale[1]:
        raise UnsupportedError(f"{shown}.scale is {list(scale)}: {AXIS_0}")
    if len(scale) != 2 or scale[1] != 1 or scale[0] < 1 or len(codes.shape) != 2 or 0 in codes.shape:
        raise CheckpointError(
            f"{shown} has scales {list(scale)} for codes {list(codes.shape)}; HQQ's are [groups, 1] and two-dimensional"
        )
    groups, packed_rows = scale[0], codes.shape[0]
    row_bytes = codes.nbytes // packed_rows
    bits, rest = divmod(8 * packed_rows, groups)
    if codes.dtype != "int32" and not rest and bits in PACKINGS:
        return bits, row_bytes
    if packed_rows == -(-groups // PER_WORD) and row_bytes % 4 == 0:
        return 3, row_bytes // 4
    raise CheckpointError(
        f"{shown}.{CODES} is {codes.dtype} {list(codes.shape)} for {groups} groups; that is no packing of 8, 4, 3, 2 "
        "or 1 bits"
    )


def _check_state(module: str, bits: int, tensors: Tensors, tensor: ReadTensor, where: str) -> None:
    """What the layer's small tensors say must be what the shapes say, and something that is read here."""
    shown = f"{where}: {module}"
    for leaf in ("quant_scale", "quant_zero"):
        if f"{module}.{leaf}" in tensors and tensor(f"{module}.{leaf}").any():
            raise UnsupportedError(f"{shown}.{leaf}: scales and zeros that are quantised themselves are not supported")
    expect(module, "axis", ("int32", "int64", "uint8"), (), tensors, where)
    axis = int(tensor(f"{module}.axis").reshape(-1)[0])
    if axis != 1:
        raise UnsupportedError(f"{shown}.axis: {AXIS_0}" if axis == 0 else f"{shown}.axis is {axis}; supported: 1")
    info = tensors.get(f"{module}.packing")
    if info is None or info.dtype != "uint8" or info.nbytes > MAX_PACKING_BYTES:
        raise CheckpointError(f"{shown}.packing must be the bytes of one of {', '.join(PACKINGS.values())}")
    said = tensor(f"{module}.packing").tobytes().decode("latin-1")
    if said != PACKINGS[bits]:
        raise CheckpointError(f"{shown}.packing is {said!r}; the shape of {CODES} is that of {PACKINGS[bits]}")


def _unpacked(stored: Array, bits: int, size: int) -> Array:
    """uint8 [rows of groups, size], those that only fill the last words among them."""
    contiguous = np.ascontiguousarray(stored)
    if bits == 3:
        return apart(contiguous.view(np.uint32).reshape(-1, size), bits, range(27, -1, -3))
    return apart(contiguous.view(np.uint8).reshape(-1, size), bits, range(8 - bits, -1, -bits))
