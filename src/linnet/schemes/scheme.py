# SPDX-License-Identifier: Apache-2.0
"""What quantised numbers look like: element type, granularity, zero point or minimum. Values only, no tensors."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from linnet.errors import ConfigError
from linnet.schemes.elements import ELEMENTS, Element, ElementName
from linnet.schemes.sparsity import TWO_OF_FOUR

Granularity = Literal["tensor", "channel", "group", "token", "head", "block"]
DenseType = Literal["fp32", "bf16", "fp16", "int32"]
ScaleType = Literal["fp32", "bf16", "fp16", "fp8_e4m3", "e8m0"]

DENSE_BITS: dict[str, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "int32": 32}

LATER: dict[str, bool] = {"written_if_set": True}
"""Metadata of fields that came after records had been published: left out of them while they have their default, so
that the digest of a Program without them stays what it was."""


@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantised.

    ``granularity`` says what shares a scale. Weights ``[rows, columns]``: the whole tensor, an output channel (row),
    ``group_size`` consecutive columns of a row, or a ``block`` of rows x columns. Activations ``[tokens, columns]``:
    a token (row) or ``group_size`` consecutive columns of a token (the last group may be shorter). KV caches: a head of
    a token, key and value apart. ``dynamic`` scales are computed from the data when it passes; static ones are stored.
    ``minimum``: a weight is code * scale - minimum with codes from 0, instead of (code - zero point) * scale.
    ``scale_bits``: scales (and minimums) are codes of so many bits themselves, and ``super_group_size`` columns share
    one scale of scales, which then is what ``scale_dtype`` speaks of.
    ``sparsity``: ``2:4`` where two of every four neighbouring columns are zero, and are left out where the weight lies.
    ``narrow_range``: of symmetric integers, the greatest magnitude becomes the largest code (127 of int8), so that no
    code is clamped and the smallest (-128) is never used; without it, half the range (127.5).
    """

    element: ElementName
    granularity: Granularity
    group_size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: bool = False
    scale_dtype: ScaleType = "bf16"
    minimum: bool = field(default=False, metadata=LATER)
    scale_bits: int | None = field(default=None, metadata=LATER)
    super_group_size: int | None = field(default=None, metadata=LATER)
    sparsity: str | None = field(default=None, metadata=LATER)
    narrow_range: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise ConfigError(f"unknown element type {self.element!r}; accepted: {', '.join(ELEMENTS)}")
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
        if not self.symmetric and not self.numbers.affine:
            raise ConfigError(f"element type {self.element} has no zero point; only int types may be asymmetric")
        if self.numbers.learned and self.granularity != "channel":
            raise ConfigError(f"element type {self.element} has a table per row, so groups and blocks have no place")
        if self.minimum and (self.symmetric or self.group_size is None):
            raise ConfigError("a minimum needs an asymmetric scheme with groups")
        if self.narrow_range and not (self.symmetric and self.numbers.integer):
            raise ConfigError(f"a narrow range is for symmetric integers, not for {self.element}")
        self._check_super_groups()
        self._check_sparsity()

    def _check_sparsity(self) -> None:
        if self.sparsity not in (None, TWO_OF_FOUR.name):
            raise ConfigError(f"weights are stored without their zeros for the pattern 2:4 only, not {self.sparsity!r}")
        if self.sparsity is not None and not self.leaves_out_zeros:
            raise ConfigError(f"zeros of {self.element} weights cannot be left out: their code of zero is not 0")

    def _check_super_groups(self) -> None:
        size, group = self.super_group_size, self.group_size
        if (size is None) != (self.scale_bits is None):
            raise ConfigError(f"scale_bits {self.scale_bits} goes with a super_group_size, not with {size}")
        if size is not None and (group is None or size % group or size <= 0):
            raise ConfigError(f"super_group_size {size} must be a multiple of the group size, {group}")
        if self.scale_bits is not None and not 2 <= self.scale_bits <= 8:
            raise ConfigError(f"scale_bits is {self.scale_bits}; accepted is 2 to 8")

    @property
    def numbers(self) -> Element:
        """The row of the element table."""
        return ELEMENTS[self.element]

    @property
    def bits(self) -> int:
        """Bits of one code, scales not counted."""
        return self.numbers.bits

    @property
    def half_range(self) -> float:
        """What the greatest magnitude is divided by to make a symmetric scale."""
        return self.numbers.largest if self.narrow_range else self.numbers.half_range

    @property
    def leaves_out_zeros(self) -> bool:
        """Whether a weight of zero has the code 0, whatever its scale: a pattern can then be stored without its
        zeros."""
        has_zero = self.numbers.kind != "codebook" and self.numbers.step == 1
        return self.symmetric and has_zero and self.scale_bits is None

    @property
    def columns_per_scale(self) -> int | None:
        """How many neighbouring columns share a scale; None: all of a row."""
        return self.block[1] if self.block is not None else self.group_size


@dataclass(frozen=True)
class LinearScheme:
    """One linear layer: its weight's scheme and, if the checkpoint prescribes it, its input's.

    ``sorted_columns``: columns lie sorted by group, where a group's columns are scattered (activation order); the
    weight's ``column_order`` int32 [columns] says which logical column each is.
    """

    weight: Scheme
    input: Scheme | None = None
    sorted_columns: bool = field(default=False, metadata=LATER)
