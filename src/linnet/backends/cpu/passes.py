# SPDX-License-Identifier: Apache-2.0
"""The backend's own passes on a Program whose numerics are chosen."""

from collections.abc import Set
from dataclasses import replace

from linnet.program.attributes import Dequantise
from linnet.program.program import Op, Program, Segment, Value
from linnet.program.traverse import boundary, declarations


def widen_inputs(program: Program, refused: Set[str]) -> Program:
    """Put a dequantise in front of the linears named in ``refused``: their weight has no integer kernel for this input.

    The rounding the policy asked for still happens; only the arithmetic becomes fp32. Consumers share one op.
    """
    if not refused:
        return program
    declared = declarations(program)
    ops: list[Op] = []
    values: list[Value] = list(program.values)
    ranges: list[tuple[Segment, int, int]] = []
    for segment in program.segments:
        start = len(ops)
        done: set[str] = set()
        for op in program.ops[segment.start : segment.stop]:
            if op.name in refused:
                source = declared[op.inputs[0]]
                name = f"{source.name}.fp32"
                if name not in done:
                    done.add(name)
                    values.append(Value(name, source.shape, "fp32"))
                    ops.append(Op("dequantise", name, (source.name,), (name,), Dequantise()))
                op = replace(op, inputs=(name, *op.inputs[1:]))
            ops.append(op)
        ranges.append((segment, start, len(ops)))
    given = tuple(value.name for value in program.inputs)
    segments = []
    for segment, start, stop in ranges:
        entering, leaving = boundary(tuple(ops), start, stop, given, program.outputs)
        segments.append(replace(segment, start=start, stop=stop, inputs=entering, outputs=leaving))
    return replace(program, ops=tuple(ops), values=tuple(values), segments=tuple(segments))
