# SPDX-License-Identifier: Apache-2.0
"""Writing bitsandbytes' NF4 as transformers saves and loads it, scales in fp32 (for its tensors see bitsandbytes.py).

Blocks are 64 numbers; NF4 codes in other blocks keep them, each module's state says its own. Linears whose columns 64
does not divide stay plain: blocks would cross their rows.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnet.formats.forms.bitsandbytes import STATE
from linnet.formats.forms.written import Array, PlannedModule, is_inner, no_type, plain_linears
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.elements import ElementName

NAME = "bitsandbytes"
KIND: ElementName = "nf4"
BLOCK = 64
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes that bitsandbytes has kernels for."""


@dataclass(frozen=True)
class BitsAndBytesWritten:
    """Implements ``WrittenForm``. ``dtype``: what its readers compute in and dequantise to."""

    dtype: str = "bfloat16"
    name: str = NAME

    @classmethod
    def of_type(cls, kind: str) -> "BitsAndBytesWritten":
        """ConfigError: it has no types."""
        no_type(NAME, kind, f"it is written as NF4 in blocks of {BLOCK}")
        return cls()

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes."""
        return is_inner(module)

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "BitsAndBytesWritten":
        """See WrittenForm.settled."""
        dtype = config.get("torch_dtype", config.get("dtype"))
        return replace(self, dtype=dtype) if dtype in ("float16", "bfloat16", "float32") else self

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        weight = scheme.weight
        if weight.element != KIND or weight.group_size not in BLOCKS:
            return None
        return LinearScheme(Scheme(KIND, "group", weight.group_size, scale_dtype="fp32"))

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme | None:
        """See WrittenForm.nearest."""
        return None if shape[1] % BLOCK else LinearScheme(Scheme(KIND, "group", BLOCK, scale_dtype="fp32"))

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point: it has none."""
        return 0

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors."""
        table = packed.scheme.weight.numbers.values
        assert table is not None
        codes = packed.codes().reshape(-1)
        state = {
            "quant_type": KIND,
            "blocksize": packed.scheme.weight.group_size,
            "dtype": self.dtype,
            "shape": list(packed.shape),
        }
        return {
            "weight": (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1),
            "weight.absmax": packed.scales().reshape(-1),
            "weight.quant_map": table,
            f"{STATE}{KIND}": np.frombuffer(json.dumps(state).encode(), np.uint8),
        }

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record."""
        return {
            "quant_method": NAME,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": KIND,
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": self.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": plain_linears(modules, dense),
        }
