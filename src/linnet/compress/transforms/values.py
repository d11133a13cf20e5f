# SPDX-License-Identifier: Apache-2.0
"""Attention's values in a Program: which rows make them, and which columns read what attention mixes of them.

Attention adds up values of one head, each times a number, so that an orthogonal matrix on the channels of a head passes
through it: what makes the values takes it, what reads the mixture its inverse.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from linnet.program.attributes import Attention
from linnet.program.program import Op, Program, WeightRef

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Values:
    """Checkpoint name -> (the rows that are values, None: all; channels of a head), and -> channels of a head of the
    tensors whose columns read them."""

    makers: dict[str, tuple[Ranges | None, int]]
    readers: dict[str, int]


def values_of(program: Program, behind: Container[str] = ()) -> Values:
    """Of every attention whose values a linear makes, and linears alone read; others are left out.

    ``behind``: modules whose weights take the values' inverse before that of what their inputs go through at run time.
    """
    refs = {weight.name: weight.ref for weight in program.weights}
    sizes = {state.name: state.value_head_size for state in program.states}
    writing = {name: op for op in program.ops for name in op.outputs}
    written = {op.states[0]: writing.get(op.inputs[1]) for op in program.ops if op.kind == "kv_write"}
    found = Values({}, {})
    for op in program.ops:
        if not isinstance(op.attributes, Attention):
            continue
        maker, size = written.get(op.states[0]), sizes[op.states[0]]
        reading = _readers(program, op.outputs[0], refs, behind)
        makes_others = maker is not None and sum(maker.outputs[0] in each.inputs for each in program.ops) > 1
        if maker is None or maker.kind != "linear" or makes_others or any(each.kind != "linear" for each in reading):
            continue
        tensors: list[WeightRef] = [refs[name] for name in maker.weights]
        found.makers.update({ref.checkpoint_name: (ref.rows, size) for ref in tensors})
        found.readers.update({refs[each.weights[0]].checkpoint_name: size for each in reading})
    return found


def _readers(program: Program, value: str, refs: Mapping[str, WeightRef], behind: Container[str]) -> list[Op]:
    """Of a value, or of what a rotation makes of it in front of linears of ``behind`` alone."""
    found: list[Op] = []
    for op in program.ops:
        if value not in op.inputs:
            continue
        turned = _readers(program, op.outputs[0], refs, behind) if op.kind == "hadamard" else []
        modules = [refs[each.weights[0]].checkpoint_name.removesuffix(".weight") for each in turned if each.weights]
        seen_through = turned and len(modules) == len(turned) and all(module in behind for module in modules)
        found += turned if seen_through else [op]
    return found
