# SPDX-License-Identifier: Apache-2.0
"""The Program: a model as a flat list of ops over named values. Frozen data; passes are functions on it.

The contract (single assignment, symbols, explicit rounding, declared states) is checked by ``program.check``.
"""

from dataclasses import dataclass, field
from typing import Literal

from linnet.program.attributes import ATTRIBUTES, Attention
from linnet.schemes.scheme import DENSE_BITS, LATER, DenseType, LinearScheme, Scheme

PROGRAM_VERSION = 2

Dimension = int | str
"""A fixed size or the name of a symbol: ``tokens``, ``sequences``, ``sequences_plus_one``, ``blocks``, ``outputs``,
``logit_rows`` (the first of the outputs)."""


@dataclass(frozen=True)
class Value:
    """A named array that is written once. ``dtype`` is a dense type or, for quantised activations, a Scheme."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: DenseType | Scheme


@dataclass(frozen=True)
class WeightRef:
    """Where a weight lies: a checkpoint tensor (or packed linear), row ranges of it, maybe transposed.

    ``checkpoint_name`` is the tensor's full name for a dense tensor (``...q_proj.weight``); a packed linear keeps
    the same name and is looked up by its module (the name without ``.weight``).
    ``rows`` are half-open ranges, concatenated in order; None means all rows. ``as_stored``: columns that lie sorted by
    group stay so (LinearScheme.sorted_columns); the op's input comes in that order.
    """

    checkpoint_name: str
    rows: tuple[tuple[int, int], ...] | None = None
    transposed: bool = False
    as_stored: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Weight:
    """A weight the program reads: shape after ``rows`` and ``transposed``; dense type as stored, or its schemes."""

    name: str
    ref: WeightRef
    shape: tuple[int, ...]
    dtype: DenseType | LinearScheme


@dataclass(frozen=True)
class PagedState:
    """KV of one layer: per token ``kv_heads`` keys of ``head_size`` and values of ``value_head_size``.

    ``group``: layers that look back equally far share blocks, so that those behind a window can be given back. Slots
    and block tables are the group's own."""

    name: str
    group: int
    kv_heads: int
    head_size: int
    value_head_size: int
    dtype: DenseType | Scheme = "fp32"

    @property
    def bytes_per_token(self) -> int:
        """Of one token's key and value; quantised: with one fp32 scale per head for each."""
        elements = self.kv_heads * (self.head_size + self.value_head_size)
        if isinstance(self.dtype, Scheme):
            return -(-elements * self.dtype.bits // 8) + 2 * self.kv_heads * 4
        return elements * DENSE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class SlotState:
    """What one sequence carries from token to token, however long it is: ``shape`` fp32 numbers, zeros before its first
    token."""

    name: str
    shape: tuple[int, int]

    @property
    def bytes_per_sequence(self) -> int:
        """Of one sequence."""
        return self.shape[0] * self.shape[1] * DENSE_BITS["fp32"] // 8


@dataclass(frozen=True)
class Op:
    """One step of the program; the class of ``attributes`` is fixed by ``kind``."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: object
    weights: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    expansion: tuple["Op", ...] = ()

    def __post_init__(self) -> None:
        expected = ATTRIBUTES.get(self.kind)
        if expected is None:
            raise ValueError(f"unknown op kind {self.kind!r}")
        if type(self.attributes) is not expected:
            raise ValueError(f"op {self.name}: attributes {type(self.attributes).__name__} do not fit {self.kind!r}")


@dataclass(frozen=True)
class Segment:
    """Half-open op range [start, stop) with the values that cross into and out of it."""

    name: str
    kind: Literal["embed", "block", "head"]
    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A whole model. ``values`` declares every value an op writes; ``inputs`` those the caller provides; ``states`` are
    paged, one for every token, and ``slot_states`` one for every sequence."""

    inputs: tuple[Value, ...]
    values: tuple[Value, ...]
    weights: tuple[Weight, ...]
    states: tuple[PagedState, ...]
    ops: tuple[Op, ...]
    segments: tuple[Segment, ...]
    outputs: tuple[str, ...]
    version: int = field(default=PROGRAM_VERSION)
    slot_states: tuple[SlotState, ...] = field(default=(), metadata=LATER)

    @property
    def slot_bytes(self) -> int:
        """Bytes that a sequence carries, whatever its length."""
        return sum(state.bytes_per_sequence for state in self.slot_states)


def cache_groups(program: Program) -> int:
    """How many cache groups a program's paged states are in; at least one."""
    return max((state.group for state in program.states), default=0) + 1


def group_windows(program: Program) -> tuple[int | None, ...]:
    """Of each cache group, how far its layers look back (the last keys that a row sees); None: as far as there is."""
    windows: list[int | None] = [1] * cache_groups(program)
    groups = {state.name: state.group for state in program.states}
    for op in program.ops:
        for inner in op.expansion or (op,):
            if isinstance(inner.attributes, Attention):
                group = groups[inner.states[0]]
                window, others = inner.attributes.window, windows[group]
                windows[group] = None if window is None or others is None else max(window, others)
    return tuple(windows) if groups else (None,)
