# SPDX-License-Identifier: Apache-2.0
"""GPTQ's own form: AutoGPTQ's and GPTQModel's ``qweight``, ``qzeros``, ``scales``, ``g_idx``.

qweight int32 [inputs * bits / 32, outputs] is a little-endian stream of unsigned codes along the inputs, which is what
a canonical row is: the words are turned, no code is touched. qzeros int32 [groups, outputs * bits / 32] holds the zero
points along the outputs, in version 1 (``gptq``) minus one, in version 2 (``gptq_v2``) as they are. g_idx [inputs] says
which group an input belongs to; with activation order groups are scattered, and the columns are sorted by group once.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.column_order import group_index, sorted_columns
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.record import flag, one_of, whole_number, word
from linnet.formats.forms.transposed_words import canonical, expect, groups_of, turned, words_of
from linnet.formats.name_pattern import check_pattern
from linnet.formats.prescription import Quantization, SchemeGroup
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.packing import pack_rows, unpack_rows

Array = npt.NDArray[Any]
BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
ALWAYS_SKIPPED = "-:"


class Gptq:
    """Implements ``Form``; ``version_2``: zero points are stored as they are."""

    suffixes: tuple[str, ...] = ("qweight",)
    repacks = True

    def __init__(self, version_2: bool) -> None:
        self._version_2 = version_2
        self.methods: tuple[str, ...] = ("gptq_v2",) if version_2 else ("gptq",)

    def for_record(self, record: Mapping[str, Any], where: str) -> "Gptq":
        """See Form.for_record."""
        kind = word(record, "checkpoint_format", where, FORMATS, "gptq")
        if flag(record, "is_marlin_format", where, False):
            raise UnsupportedError(f"{where}: Marlin's order of codes is not supported; {', '.join(FORMATS)} are")
        return Gptq(kind == "gptq_v2" or self._version_2)

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config."""
        general = _scheme(record, where)
        groups = [SchemeGroup((f"re:{pattern}",), scheme) for pattern, scheme in _exceptions(record, where)]
        return Quantization("gptq", (*groups, SchemeGroup(("Linear",), general)))

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return f"{module}.qweight" in tensors

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        assert prescribed is not None  # every module has one: the class of all linears is targeted
        dtype = scale_type(module, "scales", tensors, where)
        if prescribed.sorted_columns and f"{module}.g_idx" not in tensors:
            raise CheckpointError(f"{where}: {module}.g_idx is missing, which desc_act (activation order) needs")
        return replace(prescribed, weight=replace(prescribed.weight, scale_dtype=dtype))

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        info, bits = tensors[f"{module}.qweight"], scheme.weight.bits
        if info.dtype != "int32" or len(info.shape) != 2 or 0 in info.shape or info.shape[0] * 32 % bits:
            raise CheckpointError(
                f"{where}: {module}.qweight is {info.dtype} {list(info.shape)}; int32 [inputs * {bits} / 32, outputs] "
                "is needed"
            )
        return info.shape[1], info.shape[0] * 32 // bits

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        weight, shown = scheme.weight, f"{where}: {module}"
        rows, columns = shape = self.shape(module, scheme, tensors, tensor, where)
        groups = groups_of(weight, columns, where, module)
        expect(module, "scales", (weight.scale_dtype,), (groups, rows), tensors, where)
        expect(module, "qzeros", ("int32",), (groups, words_of(rows, weight.bits)), tensors, where)
        stored, order = tensor(f"{module}.qweight"), None
        if scheme.sorted_columns:
            order = sorted_columns(tensor(f"{module}.g_idx"), weight.group_size or columns, columns, f"{shown}.g_idx")
            stored = _sorted_words(stored, order, weight.bits)
        elif f"{module}.g_idx" in tensors:
            _check_trivial(tensor(f"{module}.g_idx"), weight.group_size or columns, columns, shown)
        zero_points = self._zero_points(tensor(f"{module}.qzeros"), weight, rows, shown)
        scales = turned(tensor(f"{module}.scales"))
        return canonical(turned(stored), scales, zero_points, scheme, shape, shown, order)

    def _zero_points(self, stored: Array, weight: Scheme, rows: int, shown: str) -> Array | None:
        """Unsigned [rows, groups]; None where they all say the middle, as a symmetric scheme promises.

        Version 1 counts them minus one within their bits: 0 is stored as the largest code.
        """
        unsigned = unpack_rows(stored, weight.bits, rows, 0).view(np.uint8)
        if not self._version_2:
            unsigned = (unsigned + np.uint8(1)) & np.uint8(2**weight.bits - 1)
        if not weight.symmetric:
            return turned(unsigned)
        middle = 2 ** (weight.bits - 1)
        if (unsigned != middle).any():
            other = int(unsigned[unsigned != middle][0])
            raise CheckpointError(
                f"{shown}.qzeros holds a zero point of {other}; sym is true, so all must be {middle} "
                f"(checkpoint_format {'gptq_v2' if self._version_2 else 'gptq'})"
            )
        return None


def _scheme(record: Mapping[str, Any], where: str) -> LinearScheme:
    bits = one_of(whole_number(record, "bits", where), "bits", where, BITS)
    size = whole_number(record, "group_size", where, -1)
    if size != -1 and size < 1:
        raise CheckpointError(f"{where}: group_size must be positive, or -1 for whole columns, not {size}")
    # with static groups the codes were found in another order, but a column's group is where it lies
    sorted_columns = flag(record, "desc_act", where, False) and not flag(record, "static_groups", where, False)
    symmetric = flag(record, "sym", where, True)
    granularity = "channel" if size == -1 else "group"
    weight = Scheme(cast(Any, f"int{bits}"), cast(Any, granularity), None if size == -1 else size, symmetric=symmetric)
    return LinearScheme(weight, sorted_columns=sorted_columns and size != -1)


def _exceptions(record: Mapping[str, Any], where: str) -> list[tuple[str, LinearScheme]]:
    """GPTQModel's ``dynamic``: pattern -> what differs there. Which modules are left dense, their tensors say."""
    rules = record.get("dynamic") or {}
    if not isinstance(rules, dict):
        raise CheckpointError(f"{where}: dynamic must be an object, not {rules!r:.80}")
    found = []
    for pattern, changes in rules.items():
        if pattern.startswith(ALWAYS_SKIPPED):
            continue
        bare = pattern.removeprefix("+:")
        try:
            check_pattern(bare)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: dynamic: the pattern {bare!r:.80} is refused: {error}") from None
        if not isinstance(changes, dict):
            raise CheckpointError(f"{where}: dynamic: {pattern[:80]} must be an object, not {changes!r:.80}")
        found.append((bare, _scheme({**record, **changes}, f"{where}: dynamic: {pattern[:80]}")))
    return found


def _sorted_words(stored: Array, order: Array, bits: int) -> Array:
    """qweight with its inputs in another order: rows of words are taken and shifted, place by place."""
    if 32 % bits:
        codes = unpack_rows(turned(stored), bits, len(order), 0).view(np.uint8)
        return pack_rows(np.ascontiguousarray(codes[:, order]), bits).T
    per_word, unsigned = 32 // bits, stored.view(np.uint32)
    words = np.zeros(stored.shape, np.uint32)
    for place in range(per_word):
        inputs = order[place::per_word]
        shifts = (inputs % per_word * bits).astype(np.uint32)[:, None]
        words |= (unsigned[inputs // per_word] >> shifts & np.uint32(2**bits - 1)) << np.uint32(place * bits)
    return words.view(np.int32)


def _check_trivial(index: Array, size: int, columns: int, shown: str) -> None:
    """Without activation order an index can only say what is so anyway."""
    if (group_index(index, size, columns, f"{shown}.g_idx") != np.arange(columns) // size).any():
        raise CheckpointError(f"{shown}.g_idx scatters the columns of a group although desc_act is false")
