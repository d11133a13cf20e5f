# SPDX-License-Identifier: Apache-2.0
"""Small questions every pass asks a Program: where is a value declared, written, last read; what crosses a segment.

And the one way a pass puts other ops into segments.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from linnet.program.program import Op, Program, Segment, Value


def declarations(program: Program) -> dict[str, Value]:
    """Every declared value by name, the program's inputs included."""
    return {value.name: value for value in (*program.inputs, *program.values)}


def plain_ops(program: Program) -> list[Op]:
    """The ops with every fused one replaced by what it stands for."""
    return [inner for op in program.ops for inner in op.expansion or (op,)]


def last_reads(program: Program) -> dict[str, int]:
    """Index of the last op that reads each value; a value nobody reads is absent."""
    return {name: index for index, op in enumerate(program.ops) for name in op.inputs}


def writers(program: Program) -> dict[str, int]:
    """Index of the op that writes each value."""
    return {name: index for index, op in enumerate(program.ops) for name in op.outputs}


def boundary(
    ops: tuple[Op, ...], start: int, stop: int, program_inputs: Iterable[str], program_outputs: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values crossing into and out of ops[start:stop), each in order of first use.

    Program inputs are available everywhere and are not listed; a program output written inside counts as crossing out.
    """
    given = set(program_inputs)
    inside = {name for op in ops[start:stop] for name in op.outputs}
    entering = dict.fromkeys(
        name for op in ops[start:stop] for name in op.inputs if name not in inside and name not in given
    )
    read_later = {name for op in ops[stop:] for name in op.inputs} | set(program_outputs)
    leaving = dict.fromkeys(name for op in ops[start:stop] for name in op.outputs if name in read_later)
    return tuple(entering), tuple(leaving)


def rebuilt(program: Program, change: Callable[[Sequence[Op]], list[Op]]) -> Program:
    """The program with each segment's ops changed and its boundaries found anew."""
    ops: list[Op] = []
    ranges: list[tuple[Segment, int, int]] = []
    for segment in program.segments:
        start = len(ops)
        ops += change(program.ops[segment.start : segment.stop])
        ranges.append((segment, start, len(ops)))
    given = tuple(value.name for value in program.inputs)
    segments = []
    for segment, start, stop in ranges:
        entering, leaving = boundary(tuple(ops), start, stop, given, program.outputs)
        segments.append(replace(segment, start=start, stop=stop, inputs=entering, outputs=leaving))
    return replace(program, ops=tuple(ops), segments=tuple(segments))
