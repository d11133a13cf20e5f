# SPDX-License-Identifier: Apache-2.0
"""The one way a pass puts conversions (quantise, cast, dequantise) in front of ops: shared, single assignment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from linnet.program.program import Op, Program, Value, Weight
from linnet.program.traverse import declarations, rebuilt


@dataclass(frozen=True)
class Conversion:
    """What an op's first input becomes: the new value's name and dtype, and the op that makes it from ``weights``."""

    value: Value
    kind: str
    attributes: object
    weights: tuple[Weight, ...] = ()


def convert_inputs(program: Program, wanted: Callable[[Op, Value], Conversion | None]) -> Program:
    """Give each op the converted first input that ``wanted(op, its first input)`` names; None leaves the op alone.

    Consumers that want the same name share one conversion, placed in front of the first of them. Values are declared
    in the order they are written; segments keep their ops and get their boundaries anew.
    """
    declared = declarations(program)
    values: list[Value] = []
    weights = {weight.name: weight for weight in program.weights}
    made: set[str] = set()

    def converted(ops: Sequence[Op]) -> list[Op]:
        out: list[Op] = []
        for op in ops:
            source = declared[op.inputs[0]] if op.inputs else None
            conversion = None if source is None else wanted(op, source)
            if source is not None and conversion is not None:
                name = conversion.value.name
                if name not in made:
                    made.add(name)
                    values.append(conversion.value)
                    used = tuple(weight.name for weight in conversion.weights)
                    weights.update((weight.name, weight) for weight in conversion.weights)
                    out.append(Op(conversion.kind, name, (source.name,), (name,), conversion.attributes, used))
                op = replace(op, inputs=(name, *op.inputs[1:]))
            values.extend(declared[name] for name in op.outputs)
            out.append(op)
        return out

    changed = rebuilt(program, converted)
    return replace(changed, values=tuple(values), weights=tuple(weights.values()))
