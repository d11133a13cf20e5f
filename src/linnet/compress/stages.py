# SPDX-License-Identifier: Apache-2.0
"""A block is walked in stages, one per tap: each op runs once, on linears that have already been compressed.

A stage runs up to the op that writes its tap; the linears that read the tap are then fitted, and the next stage goes on
with them in their place. What the next stage needs is carried over: the few values that are alive where it begins.
That place lies a little before the tap where the ops between are cheap and fewer values are alive.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from linnet.program.program import Program, Segment, Value
from linnet.program.traverse import declarations, known_at

_CHEAP = frozenset(("norm", "add", "scale", "softcap", "cast", "gate", "hadamard"))
"""Ops that are repeated rather than have their result carried."""


@dataclass(frozen=True)
class Stage:
    """Ops [start, stop); ``inputs`` are the values carried in, ``outputs`` those that the next stage starts from."""

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...]


def stages_of(program: Program, segment: Segment, taps: Collection[str], to_the_end: bool) -> tuple[Stage, ...]:
    """The stages of a segment; with ``to_the_end`` the last one has no taps and yields the segment's outputs."""
    known = known_at(program)
    ends: dict[int, list[str]] = {}
    for tap in taps:
        ends.setdefault(max(known(tap) + 1, segment.start), []).append(tap)
    stages: list[Stage] = []
    start, inputs = segment.start, segment.inputs
    for stop in sorted(ends):
        cut = start if stop == max(ends) and not to_the_end else _cut(program, segment, start, stop)
        outputs = () if cut == start else _alive(program, segment, cut)
        stages.append(Stage(start, stop, inputs, outputs, tuple(ends[stop])))
        if cut != start:
            start, inputs = cut, outputs
    if to_the_end:
        stages.append(Stage(start, segment.stop, inputs, segment.outputs, ()))
    return tuple(stages)


def whole(segment: Segment) -> Stage:
    """All of a segment at once."""
    return Stage(segment.start, segment.stop, segment.inputs, segment.outputs, ())


def carried_bytes(program: Program, segment: Segment, taps: Collection[str], tokens: int) -> int:
    """What the files between the stages grow to."""
    values = declarations(program)
    stages = stages_of(program, segment, taps, True)[:-1]
    widths = [sum(_width(values[name]) or 0 for name in stage.outputs) for stage in stages] or [0]
    return 8 * tokens * max(widths)  # two files by turns


def _cut(program: Program, segment: Segment, start: int, stop: int) -> int:
    """Where the next stage begins: of the places after the last dear op, the one with the least to carry.

    ``start`` itself, where nothing has to be carried anew, if no place in between will do.
    """
    values, best, least = declarations(program), start, None
    for place in range(stop, start, -1):
        widths = [_width(values[name]) for name in _alive(program, segment, place)]
        if None not in widths and not _open_states(program, segment, place):
            size = sum(width or 0 for width in widths)
            if least is None or size < least:
                best, least = place, size
        if program.ops[place - 1].kind not in _CHEAP and least is not None:
            return best
    return start


def _alive(program: Program, segment: Segment, place: int) -> tuple[str, ...]:
    """Values written in the segment or given to it that ops from ``place`` on, or later segments, read."""
    ops = program.ops[segment.start : segment.stop]
    known = dict.fromkeys(segment.inputs)
    known |= dict.fromkeys(name for op in ops[: place - segment.start] for name in op.outputs)
    read = {name for op in ops[place - segment.start :] for name in op.inputs} | set(segment.outputs)
    return tuple(name for name in known if name in read)


def _open_states(program: Program, segment: Segment, place: int) -> bool:
    before = {state for op in program.ops[segment.start : place] for state in op.states}
    return any(state in before for op in program.ops[place : segment.stop] for state in op.states)


def _width(value: Value) -> int | None:
    """Elements of four bytes per token, None if a file of rows cannot hold it."""
    if (
        value.dtype not in ("fp32", "int32")
        or value.shape[:1] != ("tokens",)
        or not all(isinstance(n, int) for n in value.shape[1:])
    ):
        return None
    return prod(int(n) for n in value.shape[1:])
