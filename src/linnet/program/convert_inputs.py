# SPDX-License-Identifier: Apache-2.0
"""The one way a pass puts conversions (quantise, cast, dequantise) in front of ops: shared, single assignment."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from linnet.program.program import Op, Program, Segment, Value
from linnet.program.traverse import boundary, declarations


@dataclass(frozen=True)
class Conversion:
    """What an op's first input becomes: the new value's name and dtype, and the op that makes it."""

    value: Value
    kind: str
    attributes: object


def convert_inputs(program: Program, wanted: Callable[[Op, Value], Conversion | None]) -> Program:
    """Give each op the converted first input that ``wanted(op, its first input)`` names; None leaves the op alone.

    Consumers that want the same name share one conversion, placed in front of the first of them. Values are declared
    in the order they are written; segments keep their ops and get their boundaries anew.
    """
    declared = declarations(program)
    ops: list[Op] = []
    values: list[Value] = []
    ranges: list[tuple[Segment, int, int]] = []
    made: set[str] = set()
    for segment in program.segments:
        start = len(ops)
        for op in program.ops[segment.start : segment.stop]:
            source = declared[op.inputs[0]] if op.inputs else None
            conversion = None if source is None else wanted(op, source)
            if source is not None and conversion is not None:
                name = conversion.value.name
                if name not in made:
                    made.add(name)
                    values.append(conversion.value)
                    ops.append(Op(conversion.kind, name, (source.name,), (name,), conversion.attributes))
                op = replace(op, inputs=(name, *op.inputs[1:]))
            values.extend(declared[name] for name in op.outputs)
            ops.append(op)
        ranges.append((segment, start, len(ops)))
    given = tuple(value.name for value in program.inputs)
    segments = []
    for segment, start, stop in ranges:
        entering, leaving = boundary(tuple(ops), start, stop, given, program.outputs)
        segments.append(replace(segment, start=start, stop=stop, inputs=entering, outputs=leaving))
    return replace(program, ops=tuple(ops), values=tuple(values), segments=tuple(segments))
