# SPDX-License-Identifier: Apache-2.0
"""Dependency groups: which parts of which tensors have to go together if one of them goes.

After Ma, Fang and Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", section 3.1. They are
found in the Program, so neither a family nor a kind of unit is enumerated here: every column of every value and every
index along both axes of every weight is a node, every op ties some of them together, and a connected piece that
something writes and something reads, but for the residual stream, is a unit. Units that take the same out of the same
tensors are of one group: a feed-forward neuron (a row of gate and up, a column of down), a KV head with the query heads
that share it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from linnet.models.inventory import checkpoint_tensors
from linnet.program.attributes import Attention, Hadamard, Norm, Rope
from linnet.program.program import Op, Program, Segment, WeightRef
from linnet.program.traverse import declarations, writers

UnitKind = Literal["neurons", "heads", "kv_groups", "layers"]
"""``heads``: query heads one by one, as many in every KV group; ``kv_groups``: a KV head with all query heads that
share it; ``layers``: whole blocks."""

Indices = npt.NDArray[np.int64]
_BETWEEN: dict[str, tuple[UnitKind, ...]] = {"gate": ("neurons",), "attention": ("heads", "kv_groups")}
"""Op that makes the value which a group's units are columns of -> what such units are called."""


@dataclass(frozen=True, eq=False)
class Part:
    """What units have of one tensor: ``indices`` [units, n] along ``axis``."""

    tensor: str
    axis: int
    indices: Indices


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of one kind in one block. ``values``: what statistics are taken of, side by side, and ``columns`` [units,
    n] the units' own in them; ``pools`` [pools, n]: units that compete, each pool loses as many."""

    kind: UnitKind
    segment: int
    parts: tuple[Part, ...]
    values: tuple[str, ...]
    columns: Indices
    pools: Indices

    @property
    def readers(self) -> tuple[Part, ...]:
        """The parts that multiply the units' own values: columns of weights."""
        return tuple(part for part in self.parts if part.axis == 1)


def unit_groups(program: Program, kind: UnitKind) -> tuple[UnitGroup, ...]:
    """The groups of a kind in every block, in their order; none where the model has no such units."""
    blocks = [index for index, segment in enumerate(program.segments) if segment.kind == "block"]
    if kind == "layers":
        return tuple(_whole_block(program, index) for index in blocks)
    return tuple(group for index in blocks for group in _Ties(program, index, kind == "heads").groups(kind))


def _whole_block(program: Program, index: int) -> UnitGroup:
    """A block is one unit; its input and output, side by side, are what can be known about it."""
    segment, lengths = program.segments[index], checkpoint_tensors(program)
    names = dict.fromkeys(ref.checkpoint_name for ref in _refs(program, segment).values())
    parts = tuple(Part(name, 0, np.arange(lengths[name][0])[None]) for name in names)
    width = sum(_width(program, name) for name in (*segment.inputs, *segment.outputs))
    return UnitGroup(
        "layers", index, parts, (*segment.inputs, *segment.outputs), np.arange(width)[None], np.zeros((1, 1), np.int64)
    )


class _Ties:
    """The nodes of a block and what ties them. ``single_heads``: query heads of a KV group are not tied to one another,
    nor to its key and value, which stay."""

    def __init__(self, program: Program, index: int, single_heads: bool) -> None:
        self._program, self._index, self._segment = program, index, program.segments[index]
        self._refs, self._lengths = _refs(program, self._segment), checkpoint_tensors(program)
        self._first: dict[tuple[str, int], int] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._total = 0
        self._ends: list[tuple[Indices, Indices]] = []
        self._attention: dict[str, Attention] = {}
        written: dict[str, Op] = {}
        for op in program.ops[self._segment.start : self._segment.stop]:
            match op.attributes:
                case Attention() as attention:
                    self._attention[op.outputs[0]] = attention
                    self._attend(op, attention, written[op.states[0]], single_heads)
                case Norm(size=size):
                    self._norm(op, size)
                case Rope(head_size=size) | Hadamard(size=size):
                    self._tie(self._value(op.outputs[0]), self._value(op.inputs[0]))
                    self._runs(op.outputs[0], size)
                case _:
                    self._other(op)
            written |= {state: op for state in op.states if op.kind == "kv_write"}

    # -- ties ------------------------------------------------------------------------------------------------------

    def _other(self, op: Op) -> None:
        if op.kind == "linear":
            weight, *bias = (self._refs[name] for name in op.weights)
            self._tie(self._value(op.inputs[0]), self._axis(weight.checkpoint_name, 1))
            for ref in (weight, *bias):
                self._tie(self._value(op.outputs[0]), self._axis(ref.checkpoint_name, 0)[_rows_of(ref)])
        elif op.kind in ("gate", "add", "scale", "softcap", "cast"):
            for name in op.inputs:
                self._tie(self._value(op.outputs[0]), self._value(name))
        elif op.kind != "kv_write":  # of an op that nobody here knows, everything hangs together
            for name in (*op.inputs, *op.outputs):
                if name in self._declared:
                    self._tie_all(self._value(name))
                    self._tie(self._value(op.outputs[0])[:1], self._value(name)[:1])

    @property
    def _declared(self) -> set[str]:
        return {value.name for value in self._program.values}

    def _norm(self, op: Op, size: int) -> None:
        out = self._value(op.outputs[0])
        self._tie(out, self._value(op.inputs[0]))
        if size < len(out):
            self._runs(op.outputs[0], size)  # each run, a head, is normalised as one; all share the gain
            return
        for name in op.weights:
            self._tie(out, self._axis(self._refs[name].checkpoint_name, 0))

    def _attend(self, op: Op, attention: Attention, written: Op, single_heads: bool) -> None:
        query, context = self._value(op.inputs[0]), self._value(op.outputs[0])
        key, value = (self._value(name) for name in written.inputs[:2])
        heads, kv_heads = attention.heads, attention.kv_heads
        self._runs(op.inputs[0], len(query) // heads)
        self._runs(op.outputs[0], len(context) // heads)
        self._tie(query.reshape(heads, -1)[:, 0], context.reshape(heads, -1)[:, 0])
        for name, nodes in zip(written.inputs, (key, value), strict=False):
            self._runs(name, len(nodes) // kv_heads)
        keys = key.reshape(kv_heads, -1)[:, 0]
        self._tie(keys, value.reshape(kv_heads, -1)[:, 0])
        if not single_heads or heads == kv_heads:
            self._tie(query.reshape(heads, -1)[:, 0], np.repeat(keys, heads // kv_heads))

    def _runs(self, name: str, size: int) -> None:
        """Neighbouring columns that go together, ``size`` at a time."""
        nodes = self._value(name).reshape(-1, size)
        self._tie(nodes[:, 1:].ravel(), np.repeat(nodes[:, 0], size - 1))

    def _tie_all(self, nodes: Indices) -> None:
        self._tie(nodes[1:], nodes[:-1])

    def _tie(self, left: Indices, right: Indices) -> None:
        assert len(left) == len(right), "an op ties columns that are not as many"
        self._ends.append((left, right))

    def _value(self, name: str) -> Indices:
        return self._nodes((name, -1), _width(self._program, name))

    def _axis(self, tensor: str, axis: int) -> Indices:
        return self._nodes((tensor, axis), self._lengths[tensor][axis])

    def _nodes(self, key: tuple[str, int], size: int) -> Indices:
        if key not in self._first:
            self._first[key], self._sizes[key] = self._total, size
            self._total += size
        return np.arange(self._first[key], self._first[key] + self._sizes[key])

    # -- what hangs together ---------------------------------------------------------------------------------------

    def groups(self, kind: UnitKind) -> list[UnitGroup]:
        """The groups of units of a kind, in the order in which their values are written."""
        left, right = (np.concatenate(ends) for ends in zip(*self._ends, strict=True))
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self._total, self._total))
        count, labels = connected_components(graph, directed=False)
        stream = np.zeros(count, bool)
        for name in (*self._segment.inputs, *self._segment.outputs):
            stream[labels[self._value(name)]] = True
        axes = [key for key in self._first if key[1] >= 0]
        counts = np.stack([np.bincount(labels[self._axis(*key)], minlength=count) for key in axes], axis=1)
        written = counts[:, [axis == 0 for _, axis in axes]].any(axis=1)
        read = counts[:, [axis == 1 for _, axis in axes]].any(axis=1)
        candidates = np.flatnonzero(written & read & ~stream)
        groups = [
            group
            for shape in np.unique(counts[candidates], axis=0)
            if (group := self._group(kind, axes, candidates[(counts[candidates] == shape).all(axis=1)], labels))
        ]
        wrote = writers(self._program)
        return sorted(groups, key=lambda group: wrote[group.values[0]])

    def _group(
        self, kind: UnitKind, axes: Sequence[tuple[str, int]], units: Indices, labels: Indices
    ) -> UnitGroup | None:
        """The group of components ``units``; None if they are of another kind."""
        members = {key: _members(labels[self._axis(*key)], units) for key in axes}
        reader = next(key for key, found in members.items() if found is not None and key[1] == 1)
        value = next(
            op.inputs[0]
            for op in self._program.ops[self._segment.start : self._segment.stop]
            if op.kind == "linear" and self._refs[op.weights[0]].checkpoint_name == reader[0]
        )
        maker = self._program.ops[writers(self._program)[value]]
        if kind not in _BETWEEN.get(maker.kind, ()):
            return None
        columns = members[reader]
        assert columns is not None
        order = np.argsort(columns[:, 0])
        parts = tuple(Part(*key, found[order]) for key, found in members.items() if found is not None)
        columns, count = columns[order], len(units)
        pools = np.arange(count)[None]
        if kind == "heads":
            attention = self._attention[maker.outputs[0]]
            shared = attention.heads > attention.kv_heads
            pools = pools.reshape(attention.kv_heads if shared else 1, -1)
        return UnitGroup(kind, self._index, parts, (value,), columns, pools)


def _members(labels: Indices, units: Indices) -> Indices | None:
    """[units, n]: where each of the components lies along an axis; None if it does not."""
    order = np.argsort(labels, kind="stable")
    inside = np.isin(labels[order], units)
    if not inside.any():
        return None
    return order[inside].reshape(len(units), -1)


def _refs(program: Program, segment: Segment) -> dict[str, WeightRef]:
    """The weights that a segment's ops read."""
    declared = {weight.name: weight.ref for weight in program.weights}
    return {name: declared[name] for op in program.ops[segment.start : segment.stop] for name in op.weights}


def _rows_of(ref: WeightRef) -> slice | Indices:
    return slice(None) if ref.rows is None else _ranges(ref.rows)


def _ranges(rows: Iterable[tuple[int, int]]) -> Indices:
    return np.concatenate([np.arange(start, stop) for start, stop in rows])


def _width(program: Program, name: str) -> int:
    width = declarations(program)[name].shape[1]
    assert isinstance(width, int)
    return width
