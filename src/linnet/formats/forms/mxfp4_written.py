# SPDX-License-Identifier: Apache-2.0
"""Writing MXFP4 as compressed-tensors' ``mxfp4-pack-quantized``: 4-bit floats, 32 columns to a power of two (for its
tensors see fp4_linear.py). Linears whose columns 32 does not divide stay plain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.formats.forms.canonical_written import ignored
from linnet.formats.forms.compressed_tensors import METHOD
from linnet.formats.forms.fp4_linear import ELEMENT
from linnet.formats.forms.written import Array, PlannedModule, is_inner, no_type, shares_scales
from linnet.schemes import LinearScheme, PackedWeight, Scheme

NAME, FORMAT = "mxfp4", "mxfp4-pack-quantized"
GROUP = 32
SCHEME = LinearScheme(Scheme(ELEMENT, "group", GROUP, scale_dtype="e8m0"))


@dataclass(frozen=True)
class Mxfp4Written:
    """Implements ``WrittenForm``."""

    name: str = NAME

    @classmethod
    def of_type(cls, kind: str) -> "Mxfp4Written":
        """ConfigError: it has no types."""
        no_type(NAME, kind, f"it is written as {FORMAT} in groups of {GROUP}")
        return cls()

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes."""
        return is_inner(module)

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "Mxfp4Written":
        """See WrittenForm.settled: nothing has to be shared."""
        return self

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        fits = scheme.weight.element == ELEMENT and shares_scales(scheme.weight, SCHEME.weight)
        return SCHEME if fits else None

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme | None:
        """See WrittenForm.nearest."""
        return None if shape[1] % GROUP else SCHEME

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point: it has none."""
        return 0

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors: canonical words are pairs of codes to a byte, the first in the low half."""
        return {
            "weight_packed": packed.arrays["weight_packed"].view(np.uint8),
            "weight_scale": packed.arrays["weight_scale"].view(np.uint8),
        }

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record."""
        weights = {
            "num_bits": 4,
            "type": "float",
            "strategy": "group",
            "group_size": GROUP,
            "symmetric": True,
            "dynamic": False,
            "scale_dtype": "torch.uint8",
            "zp_dtype": "torch.uint8",
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": METHOD,
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {**group, "format": FORMAT}},
            "ignore": ignored(modules, dense),
            "kv_cache_scheme": source.get("kv_cache_scheme"),
            "global_compression_ratio": None,
        }
