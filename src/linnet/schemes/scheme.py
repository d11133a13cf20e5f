# SPDX-License-Identifier: Apache-2.0
"""What quantised numbers look like: element type, granularity, zero point. Values only, no tensors."""

from dataclasses import dataclass
from typing import Literal, get_args

from linnet.errors import ConfigError

ElementName = Literal["ternary", "int2", "int3", "int4", "int8", "fp8_e4m3", "nf4"]
Granularity = Literal["tensor", "channel", "group", "token", "head", "block"]
DenseType = Literal["fp32", "bf16", "fp16", "int32"]
ScaleType = Literal["fp32", "bf16", "fp16"]

ELEMENT_BITS: dict[str, int] = {"ternary": 2, "int2": 2, "int3": 3, "int4": 4, "int8": 8, "fp8_e4m3": 8, "nf4": 4}
INTEGER_ELEMENTS = ("ternary", "int2", "int3", "int4", "int8")
"""Codes are signed integers: such weights can be multiplied by integer activations."""
DENSE_BITS: dict[str, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "int32": 32}


@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantised.

    ``granularity`` says what shares a scale. Weights ``[rows, columns]``: the whole tensor, an output channel (row),
    ``group_size`` consecutive columns of a row, or a ``block`` of rows x columns. Activations ``[tokens, columns]``:
    a token (row) or ``group_size`` consecutive columns of a token (the last group may be shorter). KV caches: a head of
    a token, key and value apart. ``dynamic`` scales are computed from the data when it passes; static ones are stored.
    """

    element: ElementName
    granularity: Granularity
    group_size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: bool = False
    scale_dtype: ScaleType = "bf16"

    def __post_init__(self) -> None:
        if self.element not in ELEMENT_BITS:
            raise ConfigError(f"unknown element type {self.element!r}; accepted: {', '.join(ELEMENT_BITS)}")
        for kind, value, accepted in (
            ("granularity", self.granularity, get_args(Granularity)),
            ("scale type", self.scale_dtype, get_args(ScaleType)),
        ):
            if value not in accepted:
                raise ConfigError(f"unknown {kind} {value!r:.80}; accepted: {', '.join(accepted)}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise ConfigError(f"group_size {self.group_size} goes with granularity 'group', not {self.granularity!r}")
        if (self.granularity == "block") != (self.block is not None):
            raise ConfigError(f"block {self.block} goes with granularity 'block', not {self.granularity!r}")
        if self.group_size is not None and self.group_size <= 0:
            raise ConfigError(f"group_size must be positive, not {self.group_size}")
        if not self.symmetric and not self.element.startswith("int"):
            raise ConfigError(f"element type {self.element} has no zero point; only int types may be asymmetric")

    @property
    def bits(self) -> int:
        """Bits of one code, scales not counted."""
        return ELEMENT_BITS[self.element]


@dataclass(frozen=True)
class LinearScheme:
    """One linear layer: its weight's scheme and, if the checkpoint prescribes it, its input's."""

    weight: Scheme
    input: Scheme | None = None
