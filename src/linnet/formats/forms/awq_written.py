# SPDX-License-Identifier: Apache-2.0
"""Writing AWQ's form in the order of its GEMM kernel (for its tensors see awq.py): 4 bits with zero points, one group
size for the whole model. Symmetric codes get the zero point 8."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnet.formats.forms.awq import BITS, GEMM_ORDER, PER_WORD
from linnet.formats.forms.gptq_written import integers_of_type, unsigned
from linnet.formats.forms.transposed_words import turned
from linnet.formats.forms.written import (
    Array,
    PlannedModule,
    common_group,
    has_whole_numbers,
    is_inner,
    plain_linears,
    refuse_misfits,
    shares_scales,
)
from linnet.schemes import LinearScheme, PackedWeight, Scheme

NAME = "awq"
_USUAL = Scheme("int4", "group", 128, symmetric=False, scale_dtype="fp16")


@dataclass(frozen=True)
class AwqWritten:
    """Implements ``WrittenForm``. ``scheme``: every module's; ``asked``: its group size was asked for."""

    scheme: Scheme = _USUAL
    asked: bool = False
    name: str = NAME

    @classmethod
    def of_type(cls, kind: str) -> "AwqWritten":
        """``kind``: ``W4A16-gN`` or nothing. ConfigError if AWQ cannot say it."""
        if not kind:
            return cls()
        scheme = integers_of_type(NAME, kind, (BITS,))
        return cls(replace(scheme, symmetric=False), True)

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes."""
        return is_inner(module)

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "AwqWritten":
        """See WrittenForm.settled."""
        form = self if self.asked else self._with_group(modules)
        refuse_misfits(NAME, {name: why for name, module in modules.items() if (why := form._misfit(module.shape))})
        return form

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        fits = _has_codes(scheme) and shares_scales(scheme.weight, self.scheme)
        return LinearScheme(self.scheme) if fits else None

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme:
        """See WrittenForm.nearest."""
        return LinearScheme(self.scheme)

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point."""
        return int(scheme.numbers.smallest)

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors."""
        zero_points = packed.zero_points()
        assert zero_points is not None  # the scheme has them
        return {
            "qweight": _words(unsigned(packed.codes(), self.scheme)),
            "qzeros": _words(unsigned(zero_points, self.scheme)),
            "scales": turned(packed.scales().astype(np.float16)),
        }

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record."""
        return {
            "quant_method": NAME,
            "bits": BITS,
            "group_size": self.scheme.group_size or -1,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": plain_linears(modules, dense),
        }

    def _with_group(self, modules: Mapping[str, PlannedModule]) -> "AwqWritten":
        group = common_group(modules.values(), _has_codes)
        if group is None:
            return replace(self, scheme=replace(self.scheme, granularity="channel", group_size=None))
        return replace(self, scheme=replace(self.scheme, granularity="group", group_size=group))

    def _misfit(self, shape: tuple[int, int]) -> str | None:
        size = self.scheme.group_size
        if size is not None and shape[1] % size:
            return f"group size {size} does not divide its {shape[1]} columns"
        return f"{shape[0]} rows do not fill words of {PER_WORD}" if shape[0] % PER_WORD else None


def _has_codes(scheme: LinearScheme) -> bool:
    """Whether AWQ can hold a scheme's codes, group sizes aside."""
    return not scheme.sorted_columns and has_whole_numbers(scheme.weight) and scheme.weight.bits <= BITS


def _words(codes: Array) -> Array:
    """Unsigned [outputs, inputs] -> int32 [inputs, outputs / 8] in gemm's order."""
    wide = turned(codes)
    words = np.zeros((wide.shape[0], wide.shape[1] // PER_WORD), np.uint32)
    for nibble, output in enumerate(GEMM_ORDER):
        words |= wide[:, output::PER_WORD].astype(np.uint32) << np.uint32(BITS * nibble)
    return words.view(np.int32)
