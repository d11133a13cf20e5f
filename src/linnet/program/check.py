# SPDX-License-Identifier: Apache-2.0
"""check: does a Program keep the contract? Run by tests, after passes, and on every program read from a file.

Structure: names declared once, written once and before they are read; segments tile the ops and name the right
boundary values; attributes have their declared types. Meaning: per kind, how many inputs, outputs, weights and states
an op has, and how their shapes and dtypes must fit.
"""

from collections.abc import Iterable
from typing import Any

from linnet.program.fused import check_fused
from linnet.program.program import PROGRAM_VERSION, PagedState, Program, SlotState, Value, Weight
from linnet.program.signatures import SLOT_KINDS, check_op, require
from linnet.program.traverse import boundaries
from linnet.schemes.scheme import Scheme

SYMBOLS = ("tokens", "sequences", "sequences_plus_one", "blocks", "outputs", "logit_rows")


def check(program: Program) -> None:
    """Raises ProgramError naming the first op, value, weight, state or segment that breaks the contract."""
    require(program.version == PROGRAM_VERSION, f"version {program.version} is not {PROGRAM_VERSION}")
    values = _declared("value", (*program.inputs, *program.values))
    weights = _declared("weight", program.weights)
    states = _declared("state", (*program.states, *program.slot_states))
    for value in values.values():
        _check_value(value)
    for weight in weights.values():
        _check_weight(weight)
    _check_order(program, weights, states)
    for op in program.ops:
        check_fused(op, values)
        for inner in op.expansion:
            check_op(inner, values, weights, states)
        check_op(op, values, weights, states)
    _check_segments(program)


def _declared(what: str, items: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        require(isinstance(item.name, str) and bool(item.name), f"a {what} has no name")
        require(item.name not in found, f"{what} {item.name} is declared twice")
        found[item.name] = item
    return found


def _check_value(value: Value) -> None:
    require(len(value.shape) > 0, f"value {value.name} has no dimensions")
    for dimension in value.shape:
        good = dimension in SYMBOLS if isinstance(dimension, str) else dimension > 0
        require(good, f"value {value.name}: dimension {dimension!r} is no symbol of {', '.join(SYMBOLS)} and no size")
    if isinstance(value.dtype, Scheme):
        accepted = ("token", "group") if value.dtype.dynamic else ("tensor",)
        kind = "dynamic" if value.dtype.dynamic else "static"
        good = value.dtype.granularity in accepted
        require(good, f"value {value.name}: {kind} activations are quantised per {' or '.join(accepted)}")


def _check_weight(weight: Weight) -> None:
    require(all(size > 0 for size in weight.shape), f"weight {weight.name} has shape {weight.shape}")
    if weight.ref.rows is not None:
        ordered = all(0 <= start < stop for start, stop in weight.ref.rows)
        require(ordered and bool(weight.ref.rows), f"weight {weight.name}: row ranges {weight.ref.rows}")
        rows = weight.shape[-1 if weight.ref.transposed else 0]
        total = sum(stop - start for start, stop in weight.ref.rows)
        require(total == rows, f"weight {weight.name}: row ranges hold {total} rows, its shape says {rows}")


def _check_order(program: Program, weights: dict[str, Weight], states: dict[str, PagedState | SlotState]) -> None:
    """Single assignment in list order; everything named exists; nothing declared is unused; op names are unique.

    What an expansion writes can be read inside it; outside, only what the fused op names as its outputs.
    """
    readable = {value.name for value in program.inputs}
    assigned = set(readable)
    declared = {value.name for value in program.values}
    names: set[str] = set()
    used_weights: set[str] = set()
    written_states: set[str] = set()
    for op in program.ops:
        inside = set(readable)
        for inner in op.expansion or (op,):
            require(inner.name not in names, f"op {inner.name} appears twice")
            names.add(inner.name)
            for name in inner.inputs:
                require(name in inside, f"op {inner.name} reads {name}, which nothing before it writes")
            for name in inner.outputs:
                require(name in declared, f"op {inner.name} writes {name}, which is not declared")
                require(name not in assigned, f"op {inner.name} writes {name}, which is already written")
                inside.add(name)
                assigned.add(name)
        if op.expansion:
            require(op.name not in names, f"op {op.name} appears twice")
            names.add(op.name)
            for name in op.outputs:
                require(name in inside, f"op {op.name} writes {name}, which its expansion does not")
        readable.update(op.outputs)
        for name in op.weights:
            require(name in weights, f"op {op.name} uses weight {name}, which is not declared")
        used_weights.update(op.weights)
        for name in op.states:
            require(name in states, f"op {op.name} uses state {name}, which is not declared")
            kinds = {inner.kind for inner in op.expansion or (op,)}
            written = "kv_write" in kinds or kinds <= set(SLOT_KINDS) or name in written_states
            require(written, f"op {op.name} reads state {name}, which nothing before it writes")
            written_states.add(name)
    missing = sorted(declared - assigned)
    require(not missing, f"declared but never written: {', '.join(missing)}")
    idle = sorted(weights.keys() - used_weights)
    require(not idle, f"weights that no op reads: {', '.join(idle)}")
    stale = sorted(states.keys() - written_states)
    require(not stale, f"states that no op writes: {', '.join(stale)}")
    for name in program.outputs:
        require(name in declared, f"program output {name} is written by no op")


def _check_segments(program: Program) -> None:
    """Segments tile the ops in order: one embed, blocks, one head; their boundary values are what really crosses."""
    given = [value.name for value in program.inputs]
    position = 0
    _declared("segment", program.segments)
    ranges = [(segment.start, segment.stop) for segment in program.segments]
    crossings = boundaries(program.ops, ranges, given, program.outputs)
    for segment, crossing in zip(program.segments, crossings, strict=True):
        in_order = segment.start == position and segment.stop > segment.start
        require(in_order, f"segment {segment.name} is [{segment.start}, {segment.stop}), expected start {position}")
        position = segment.stop
        for side, declared, found in zip(("in", "out"), (segment.inputs, segment.outputs), crossing, strict=True):
            same = set(declared) == set(found) and len(declared) == len(found)
            require(same, f"segment {segment.name}: values {found} cross {side}, it declares {declared}")
    require(position == len(program.ops), f"segments end at op {position} of {len(program.ops)}")
    kinds = [segment.kind for segment in program.segments]
    expected = ["embed", *["block"] * (len(kinds) - 2), "head"]
    require(kinds == expected, f"segments are {kinds}; expected one embed, blocks, one head")
