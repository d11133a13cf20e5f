# SPDX-License-Identifier: Apache-2.0
"""Writing GPTQ's form, version 1: what vLLM, AutoGPTQ, GPTQModel and transformers read (for its tensors see gptq.py).

If GPTQ has words for the numbers of every module, each keeps its own bits, groups and order of columns; else one scheme
is everybody's, so that kernels that join q, k and v find them alike. What differs from most modules, and linears that
stay plain, the record names in ``dynamic`` (GPTQModel, vLLM). A zero point of 0 is never written: stored minus one it
is the largest code, which AutoGPTQ takes for 0 and the kernels of vLLM for 2 ** bits.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from linnet.errors import ConfigError
from linnet.formats.column_order import scattered
from linnet.formats.forms.gptq import ALWAYS_SKIPPED, BITS
from linnet.formats.forms.transposed_words import turned
from linnet.formats.forms.written import (
    Array,
    PlannedModule,
    common_group,
    commonest,
    has_whole_numbers,
    is_embedding,
    is_head,
    is_inner,
    refuse_misfits,
    shares_scales,
)
from linnet.schemes import ELEMENTS, LinearScheme, PackedWeight, Scheme, parse_scheme
from linnet.schemes.elements import ElementName
from linnet.schemes.packing import pack_rows

NAME = "gptq"
_WORD_BITS = 32


@dataclass(frozen=True)
class GptqWritten:
    """Implements ``WrittenForm``. ``common``: the scheme that every module gets; None: each keeps its own."""

    common: Scheme | None = None
    name: str = NAME

    @classmethod
    def of_type(cls, kind: str) -> "GptqWritten":
        """``kind``: a scheme's name (``W4A16-g32-asym``), or nothing. ConfigError if GPTQ cannot say it."""
        return cls(integers_of_type(NAME, kind, BITS) if kind else None)

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes: a head only with its own codes, an embedding never."""
        if is_head(module):
            return scheme is not None and self.held(scheme) is not None
        return not is_embedding(module)

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "GptqWritten":
        """See WrittenForm.settled."""
        all_held = all(module.scheme is not None and self.held(module.scheme) for module in modules.values())
        form = self if self.common is not None or all_held else replace(self, common=_common(modules))
        refuse_misfits(NAME, {name: why for name, module in modules.items() if (why := form._misfit(module))})
        return form

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        weight = scheme.weight
        if not has_whole_numbers(weight):
            return None
        own = self.common or _own(weight)
        if own is None or weight.bits > own.bits or not shares_scales(weight, own):
            return None
        ordered = scheme.sorted_columns and own.group_size is not None
        if scheme.sorted_columns and own.group_size != weight.group_size:
            return None
        return LinearScheme(own, sorted_columns=ordered)

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme | None:
        """See WrittenForm.nearest."""
        return None if self.common is None else LinearScheme(self.common)

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point: 1 among unsigned codes."""
        return int(scheme.numbers.smallest) + 1

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors."""
        scheme, columns = packed.scheme.weight, packed.shape[1]
        index = np.arange(columns, dtype=np.int32) // np.int32(scheme.group_size or columns)
        if packed.scheme.sorted_columns:
            arrays = scattered(packed)
            words, index = arrays["weight_packed"], arrays["weight_g_idx"]
        else:
            words = pack_rows(unsigned(packed.codes(), scheme), scheme.bits)
        scales = packed.scales().astype(np.float16)
        zero_points = packed.zero_points()
        if zero_points is None:
            zero_points = np.zeros(scales.shape, np.int8)
        stored = (unsigned(zero_points, scheme) - np.uint8(1)) & np.uint8(2**scheme.bits - 1)
        return {
            "qweight": turned(words),
            "qzeros": pack_rows(np.ascontiguousarray(stored.T), scheme.bits),
            "scales": turned(scales),
            "g_idx": index,
        }

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record."""
        schemes = list(modules.values())
        general = max(dict.fromkeys(schemes), key=schemes.count)
        rules: dict[str, Any] = {
            f"+:{_exactly(module)}": _settings(scheme) for module, scheme in modules.items() if scheme != general
        }
        rules |= {f"{ALWAYS_SKIPPED}{_exactly(module)}": {} for module in sorted(dense) if is_inner(module)}
        return {
            "quant_method": NAME,
            "checkpoint_format": NAME,
            **_settings(general),
            "lm_head": any(is_head(module) for module in modules),
            **({"dynamic": rules} if rules else {}),
        }

    def _misfit(self, module: PlannedModule) -> str | None:
        scheme, (rows, columns) = self.common, module.shape
        if scheme is None:
            held = None if module.scheme is None else self.held(module.scheme)
            assert held is not None  # else there is a common scheme
            scheme = held.weight
        if columns % (scheme.group_size or 1):
            return f"group size {scheme.group_size} does not divide its {columns} columns"
        for count, what in ((rows, "rows"), (columns, "columns")):
            if count * scheme.bits % _WORD_BITS:
                return f"{count} {what} of {scheme.bits} bits do not fill words of {_WORD_BITS}"
        return None


def integers_of_type(form: str, kind: str, bits: tuple[int, ...]) -> Scheme:
    """The weights' part of a scheme by its name, with fp16 scales. ConfigError unless it is integers of these bits in
    groups or channels, with nothing said of activations, head or embedding."""
    preset = parse_scheme(kind)
    scheme = preset.linear.weight
    plain = scheme.numbers.integer and not scheme.numbers.own and scheme.bits in bits
    if not plain or preset.linear.input is not None or preset.head is not None:
        widths = ", ".join(f"{form}:W{width}A16" for width in bits)
        raise ConfigError(
            f"{kind!r:.40} is nothing that {form} is written in; accepted: {widths}, each with -gN, -channel or -asym"
        )
    return replace(scheme, scale_dtype="fp16")


def unsigned(codes: Array, scheme: Scheme) -> Array:
    """Signed codes or zero points -> uint8 from 0."""
    shifted: Array = codes.astype(np.int16) + 2 ** (scheme.bits - 1)
    return shifted.astype(np.uint8)


def _own(scheme: Scheme) -> Scheme | None:
    """GPTQ's scheme for the same numbers: bits that hold the codes, a scale per group or row."""
    bits = next((bits for bits in BITS if bits >= scheme.bits), None)
    if bits is None:
        return None
    size = scheme.columns_per_scale
    granularity = "channel" if size is None else "group"
    return Scheme(cast(Any, f"int{bits}"), cast(Any, granularity), size, symmetric=scheme.symmetric, scale_dtype="fp16")


def _common(modules: Mapping[str, PlannedModule]) -> Scheme:
    """Of 4 bits, or 8 where most weights have more; with zero points if the 4 bits are not those of plain numbers."""
    element, symmetric = commonest(modules, _rounded)
    bits = ELEMENTS[element].bits
    group = common_group(
        modules.values(),
        lambda scheme: not scheme.sorted_columns and has_whole_numbers(scheme.weight) and scheme.weight.bits <= bits,
    )
    return Scheme(element, "group" if group else "channel", group, symmetric=symmetric, scale_dtype="fp16")


def _rounded(module: PlannedModule) -> tuple[ElementName, bool]:
    """Element and symmetry of what a module is rounded to."""
    if module.scheme is None:
        return "int4", True
    return ("int4", False) if module.scheme.weight.bits <= 4 else ("int8", True)


def _settings(scheme: LinearScheme) -> dict[str, Any]:
    weight = scheme.weight
    return {
        "bits": weight.bits,
        "group_size": weight.group_size or -1,
        "sym": weight.symmetric,
        "desc_act": scheme.sorted_columns,
    }


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}$"
