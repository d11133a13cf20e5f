# SPDX-License-Identifier: Apache-2.0
"""Small questions every pass asks a Program: where is a value declared, written, last read; what crosses a segment.

And the one way a pass puts other ops into segments.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from linnet.program.attributes import Experts
from linnet.program.program import Op, Program, Segment, Value


def declarations(program: Program) -> dict[str, Value]:
    """Every declared value by name, the program's inputs included."""
    return {value.name: value for value in (*program.inputs, *program.values)}


def plain_ops(program: Program) -> list[Op]:
    """The ops with every fused one replaced by what it stands for."""
    return [inner for op in program.ops for inner in op.expansion or (op,)]


def multiplied(op: Op) -> tuple[str, ...]:
    """Names of the weights that a projection multiplies its input with: of every expert, or one; no biases."""
    return op.weights[: op.attributes.experts if isinstance(op.attributes, Experts) else 1]


def expert_tap(value: str, expert: int) -> str:
    """What the rows of a value that one expert reads are called where values are asked for."""
    return f"{value}@{expert}"


def tapped(tap: str) -> str:
    """The value that a tap is of."""
    return tap.partition("@")[0]


def expert_of(tap: str) -> int:
    """Whose rows an ``expert_tap`` is of."""
    return int(tap.partition("@")[2])


def sent(program: Program) -> dict[str, str]:
    """What experts read -> the value that says which rows of it go to whom."""
    return {op.inputs[0]: op.inputs[1] for op in program.ops if isinstance(op.attributes, Experts)}


def known_at(program: Program) -> Callable[[str], int]:
    """Of a tap the index of the op after which it is known, -1 for what the program is given: an expert's rows are once
    they and the choice of experts are."""
    wrote, choices = writers(program), sent(program)

    def index(tap: str) -> int:
        value = tapped(tap)
        own = wrote.get(value, -1)
        return own if value == tap else max(own, wrote.get(choices[value], -1))

    return index


def last_reads(program: Program) -> dict[str, int]:
    """Index of the last op that reads each value; a value nobody reads is absent."""
    return {name: index for index, op in enumerate(program.ops) for name in op.inputs}


def writers(program: Program) -> dict[str, int]:
    """Index of the op that writes each value."""
    return {name: index for index, op in enumerate(program.ops) for name in op.outputs}


Crossing = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of the values that enter a range of ops, and of those that leave it."""


def boundaries(
    ops: Sequence[Op],
    ranges: Iterable[tuple[int, int]],
    program_inputs: Iterable[str],
    program_outputs: Iterable[str],
) -> list[Crossing]:
    """Values crossing into and out of ops[start:stop) for each range, in order of first use.

    Program inputs are available everywhere and are not listed; a program output written inside counts as crossing out.
    """
    given, wanted = set(program_inputs), set(program_outputs)
    last_read = {name: index for index, op in enumerate(ops) for name in op.inputs}
    found = []
    for start, stop in ranges:
        here = ops[start:stop]
        inside = {name for op in here for name in op.outputs}
        entering = dict.fromkeys(name for op in here for name in op.inputs if name not in inside and name not in given)
        leaving = dict.fromkeys(
            name for op in here for name in op.outputs if name in wanted or last_read.get(name, -1) >= stop
        )
        found.append((tuple(entering), tuple(leaving)))
    return found


def rebuilt(program: Program, change: Callable[[Sequence[Op]], list[Op]]) -> Program:
    """The program with each segment's ops changed and its boundaries found anew."""
    ops: list[Op] = []
    ranges: list[tuple[Segment, int, int]] = []
    for segment in program.segments:
        start = len(ops)
        ops += change(program.ops[segment.start : segment.stop])
        ranges.append((segment, start, len(ops)))
    given = tuple(value.name for value in program.inputs)
    crossings = boundaries(ops, [(start, stop) for _, start, stop in ranges], given, program.outputs)
    segments = tuple(
        replace(segment, start=start, stop=stop, inputs=entering, outputs=leaving)
        for (segment, start, stop), (entering, leaving) in zip(ranges, crossings, strict=True)
    )
    return replace(program, ops=tuple(ops), segments=segments)
