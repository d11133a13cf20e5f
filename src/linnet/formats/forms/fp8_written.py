# SPDX-License-Identifier: Apache-2.0
"""Writing fp8 (e4m3) weights in blocks of 128 x 128, as DeepSeek and Qwen publish them (for its tensors see fp8.py).

A reader of this form rounds the inputs of every linear to fp8, per token and 128 columns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from linnet.formats.forms.written import (
    Array,
    PlannedModule,
    commonest,
    is_inner,
    no_type,
    plain_linears,
    shares_scales,
)
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.elements import ElementName

NAME = "fp8"
ELEMENT: ElementName = "fp8_e4m3"
BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Written:
    """Implements ``WrittenForm``. ``block``: rows and columns that share a scale, in every module."""

    block: tuple[int, int] = BLOCK
    name: str = NAME

    @classmethod
    def of_type(cls, kind: str) -> "Fp8Written":
        """ConfigError: it has no types."""
        no_type(NAME, kind, f"it is written as e4m3 in blocks of {BLOCK[0]} x {BLOCK[1]}")
        return cls()

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes."""
        return is_inner(module)

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "Fp8Written":
        """See WrittenForm.settled: blocks of another size, if most weights lie in such."""
        return replace(self, block=commonest(modules, _block) or BLOCK)

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        fits = scheme.weight.element == ELEMENT and shares_scales(scheme.weight, self._scheme.weight)
        return self._scheme if fits else None

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme:
        """See WrittenForm.nearest."""
        return self._scheme

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point: it has none."""
        return 0

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors."""
        return {"weight": packed.arrays["weight"], "weight_scale_inv": packed.arrays["weight_scale"]}

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record."""
        return {
            "quant_method": NAME,
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
            "modules_to_not_convert": plain_linears(modules, dense),
        }

    @property
    def _scheme(self) -> LinearScheme:
        weight = Scheme(ELEMENT, "block", block=self.block, scale_dtype="fp32")
        return LinearScheme(weight, Scheme(ELEMENT, "group", self.block[1], dynamic=True))


def _block(module: PlannedModule) -> tuple[int, int] | None:
    """The blocks in which a module's fp8 numbers lie."""
    if module.scheme is None or module.scheme.weight.element != ELEMENT:
        return None
    return module.scheme.weight.block
