# SPDX-License-Identifier: Apache-2.0
"""AWQ's own form: AutoAWQ's ``qweight``, ``qzeros``, ``scales``, in the orders of its GEMM and GEMV kernels.

gemm: qweight int32 [inputs, outputs / 8], eight outputs to a word in the order 0 2 4 6 1 3 5 7; qzeros [groups,
outputs / 8] alike; scales [groups, outputs]. gemv: qweight int32 [outputs, inputs / 8] in plain order, which is a
canonical row; qzeros [outputs, words] and scales [outputs, 8 * words] hold a group per column, padded. A weight is
(code - zero point) * scale in both. The words of gemm are turned once, one module at a time.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.record import flag, one_of, whole_number, word
from linnet.formats.forms.transposed_words import canonical, expect, groups_of, turned
from linnet.formats.prescription import Quantization, SchemeGroup
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.packing import pack_rows, unpack_rows

Array = npt.NDArray[Any]
BITS, PER_WORD = 4, 8
VERSIONS = ("gemm", "gemv")
PADDINGS = (1, 2, 4)
"""Of words of gemv's zero points in a row: AutoAWQ pads groups of 64 to twos and groups of 32 to fours."""
GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word belongs to the output GEMM_ORDER[i] of its eight."""


class Awq:
    """Implements ``Form``; ``gemv``: the order of that kernel."""

    methods: tuple[str, ...] = ("awq",)
    suffixes: tuple[str, ...] = ("qweight",)
    repacks = True

    def __init__(self, gemv: bool = False) -> None:
        self._gemv = gemv

    def for_record(self, record: Mapping[str, Any], where: str) -> "Awq":
        """See Form.for_record."""
        return Awq(word(record, "version", where, VERSIONS, "gemm") == "gemv")

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. Which modules are left dense (``modules_to_not_convert``) their tensors say."""
        bits = whole_number(record, "bits" if "bits" in record else "w_bit", where)
        one_of(bits, "bits", where, (BITS,))
        size = whole_number(record, "group_size" if "group_size" in record else "q_group_size", where, 128)
        if size != -1 and size < 1:
            raise CheckpointError(f"{where}: group_size must be positive, or -1 for whole columns, not {size}")
        symmetric = not flag(record, "zero_point", where, True)
        granularity = "channel" if size == -1 else "group"
        weight = Scheme("int4", cast(Any, granularity), None if size == -1 else size, symmetric=symmetric)
        return Quantization("awq", (SchemeGroup(("Linear",), LinearScheme(weight)),))

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return f"{module}.qweight" in tensors

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme. Zero points that are stored count, whatever the config says."""
        assert prescribed is not None  # every module has one: the class of all linears is targeted
        dtype = scale_type(module, "scales", tensors, where)
        stored = f"{module}.qzeros" in tensors
        if not stored and not prescribed.weight.symmetric:
            raise CheckpointError(f"{where}: {module}.qzeros is missing although zero_point is true")
        weight = replace(prescribed.weight, symmetric=not stored, scale_dtype=dtype)
        return replace(prescribed, weight=weight)

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        info = tensors[f"{module}.qweight"]
        if info.dtype != "int32" or len(info.shape) != 2 or 0 in info.shape:
            needed = "[outputs, inputs / 8]" if self._gemv else "[inputs, outputs / 8]"
            raise CheckpointError(
                f"{where}: {module}.qweight is {info.dtype} {list(info.shape)}; int32 {needed} is needed"
            )
        first, words = info.shape
        return (first, words * PER_WORD) if self._gemv else (words * PER_WORD, first)

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        rows, columns = shape = self.shape(module, scheme, tensors, tensor, where)
        groups = groups_of(scheme.weight, columns, where, module)
        zero_points: Array | None = None
        if self._gemv:
            kept = _padded_words(groups, tensors, module)
            expect(module, "scales", (scheme.weight.scale_dtype,), (rows, kept * PER_WORD), tensors, where)
            words = np.ascontiguousarray(tensor(f"{module}.qweight"))
            scales = np.ascontiguousarray(tensor(f"{module}.scales")[:, :groups])
            if not scheme.weight.symmetric:
                expect(module, "qzeros", ("int32",), (rows, kept), tensors, where)
                zero_points = unpack_rows(tensor(f"{module}.qzeros"), BITS, kept * PER_WORD, 0)[:, :groups]
        else:
            expect(module, "scales", (scheme.weight.scale_dtype,), (groups, rows), tensors, where)
            words = _turned_words(tensor(f"{module}.qweight"))
            scales = turned(tensor(f"{module}.scales"))
            if not scheme.weight.symmetric:
                expect(module, "qzeros", ("int32",), (groups, rows // PER_WORD), tensors, where)
                zero_points = unpack_rows(_turned_words(tensor(f"{module}.qzeros")), BITS, groups, 0)
        return canonical(words, scales, zero_points, scheme, shape, f"{where}: {module}")


def _padded_words(groups: int, tensors: Tensors, module: str) -> int:
    """Words of a row of gemv's zero points: as many as the groups fill, padded as far as its kernel wants; by the
    scales, which are there without zero points too."""
    least = -(-groups // PER_WORD)
    scales = tensors.get(f"{module}.scales")
    stored = scales.shape[-1] // PER_WORD if scales is not None and scales.shape else least
    return stored if stored in {-(-least // step) * step for step in PADDINGS} else least


def _turned_words(stored: Array) -> Array:
    """gemm's int32 [inputs, outputs / 8] -> canonical int32 [outputs, words of the inputs]."""
    inputs, eights = stored.shape
    unsigned = stored.view(np.uint32)
    words = np.empty((eights * PER_WORD, -(-inputs // PER_WORD)), np.int32)
    for nibble, output in enumerate(GEMM_ORDER):
        codes = (unsigned >> np.uint32(BITS * nibble)).astype(np.uint8) & np.uint8(15)
        words[output::PER_WORD] = pack_rows(turned(codes), BITS)
    return words
