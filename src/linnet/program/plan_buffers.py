# SPDX-License-Identifier: Apache-2.0
"""plan_buffers: give every value a place in one arena, from liveness alone, before anything is allocated.

A value lives from the op that writes it to the last op that reads it, both inclusive: an op's outputs never overlap
its inputs, but for what adapters add to: a result that nobody else reads is added to in its place. Program outputs and
kept values (taps) live to the end. Program inputs belong to the caller and have no place here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from linnet.errors import ConfigError
from linnet.program.prescribed import keeps_codes
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations, last_reads
from linnet.schemes.scheme import DENSE_BITS, Scheme

ALIGNMENT_BYTES = 64
ROW_BYTES = 128
"""Rows of quantised codes are padded to a multiple of this."""
CROWDED_BYTES = 1024
"""Rows this far apart, or a multiple of it, share a few places of a cache; they get another ROW_BYTES."""

ValueBytes = Callable[[Value, Mapping[str, int]], int]


@dataclass(frozen=True)
class BufferPlan:
    """Byte offsets and sizes in one arena of ``arena_bytes``; every offset is a multiple of 64."""

    arena_bytes: int
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]


def align(size: int) -> int:
    """Round up to the arena's alignment."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def resolve_shape(value: Value, bounds: Mapping[str, int]) -> tuple[int, ...]:
    """The largest shape a value can have under the symbols' bounds."""
    shape = []
    for dimension in value.shape:
        if isinstance(dimension, int):
            shape.append(dimension)
        elif dimension in bounds:
            shape.append(bounds[dimension])
        else:
            known = ", ".join(sorted(bounds)) or "none"
            raise ConfigError(f"value {value.name}: symbol {dimension!r} has no bound; bounded symbols: {known}")
    return tuple(shape)


def value_bytes(value: Value, bounds: Mapping[str, int]) -> int:
    """Bytes of a value, an upper bound over backends for quantised ones.

    A quantised value [rows, width] is three arrays one after another, each 64-byte aligned: int8 codes (a backend may
    pad every group to 64 codes and every row to 128), fp32 scales [rows, groups] and int32 sums of codes
    [rows, groups] (the sums correct weights stored unsigned or with zero points), QuantisedRows of
    csrc/kernels/linear.h. One that is not multiplied as integers takes no more as the fp32 numbers it stands for.
    """
    shape = resolve_shape(value, bounds)
    if isinstance(value.dtype, Scheme) and not keeps_codes(value.dtype):
        return prod(shape) * 4
    if not isinstance(value.dtype, Scheme):
        return prod(shape) * DENSE_BITS[value.dtype] // 8
    rows, width = prod(shape[:-1]), shape[-1]
    group_size = value.dtype.group_size or width
    groups = -(-width // group_size)
    row_bytes = -(-groups * align(group_size) // ROW_BYTES) * ROW_BYTES
    if row_bytes % CROWDED_BYTES == 0:
        row_bytes += ROW_BYTES
    return rows * row_bytes + 2 * align(rows * groups * 4)


def plan_buffers(
    program: Program, bounds: Mapping[str, int], keep: Iterable[str] = (), value_bytes: ValueBytes = value_bytes
) -> BufferPlan:
    """Place every value: first fit at the lowest offset free over its whole life. Deterministic.

    ``bounds`` gives the largest value of every symbol used. ``keep`` names values that must survive the run.
    Raises ConfigError for an unbounded symbol or an unknown kept name.
    """
    declared = declarations(program)
    kept = set(keep)
    unknown = sorted(kept - {value.name for value in program.values})
    if unknown:
        raise ConfigError(f"cannot keep {', '.join(unknown)}: no op of the program writes it")
    end = len(program.ops)
    last = last_reads(program)
    dies = dict.fromkeys((*kept, *program.outputs), end)
    live: list[tuple[int, int, int]] = []  # (offset, end offset, index of the last op that needs it), by offset
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    arena = 0
    for index, op in enumerate(program.ops):
        live = [place for place in live if place[2] >= index]
        onto = _added_to(op)
        for name in op.outputs:
            size = value_bytes(declared[name], bounds)
            until = dies.get(name, last.get(name, index))
            if name in onto and onto[name] not in dies and last[onto[name]] == index:
                start = offsets[name] = offsets[onto[name]]
                sizes[name] = size
                live = [(*place[:2], until) if place[0] == start else place for place in live]
                continue
            needed = max(align(size), ALIGNMENT_BYTES)
            offset = 0
            for start, stop, _ in live:
                if offset + needed <= start:
                    break
                offset = max(offset, stop)
            offsets[name], sizes[name] = offset, size
            arena = max(arena, offset + needed)
            live.append((offset, offset + needed, until))
            live.sort()
    return BufferPlan(arena, MappingProxyType(offsets), MappingProxyType(sizes))


def _added_to(op: Op) -> dict[str, str]:
    """Of what a low_rank_add writes, the value of the same shape that it adds to."""
    return {one.outputs[0]: one.inputs[0] for one in op.expansion or (op,) if one.kind == "low_rank_add"}
