# SPDX-License-Identifier: Apache-2.0
"""What a program reads from the checkpoint: every tensor with its shape, and every linear with its tap."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from linnet.models.build import build_program
from linnet.models.spec import ArchSpec
from linnet.program.program import Program
from linnet.program.traverse import expert_tap, multiplied
from linnet.schemes.terms import COMPUTED, Terms

_NO_TERMS: Mapping[str, Terms] = MappingProxyType({})


@dataclass(frozen=True)
class LinearInfo:
    """One linear of the checkpoint: what compression walks over.

    ``module`` names it in scheme maps and on disk; ``tensor`` is where its dense weight lies (they part ways only for
    a tied head, whose weight is the embedding's). ``tap`` is the fp32 value every op of it reads, or those
    rows of it that an expert reads (``program.traverse.expert_tap``); ``segment`` the
    index of the segment it runs in; ``operations`` the ops it feeds, several when the tensor is fused.
    """

    module: str
    tensor: str
    shape: tuple[int, int]
    tap: str
    segment: int
    kind: Literal["linear", "head"]
    operations: tuple[str, ...]


def checkpoint_tensors(program: Program) -> dict[str, tuple[int, ...]]:
    """Dense tensor name -> shape of the whole checkpoint tensor, in the order the program declares its weights.

    The rows that several weights take of one fused tensor cover it: it is as long as the furthest of them reaches.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for weight in program.weights:
        name, rows = weight.ref.checkpoint_name, weight.ref.rows
        if name.endswith(COMPUTED):
            continue
        shape = weight.shape[::-1] if weight.ref.transposed else weight.shape
        length = shape[0] if rows is None else max(stop for _, stop in rows)
        tensors[name] = (max(length, tensors.get(name, (0,))[0]), *shape[1:])
    return tensors


def required_tensors(spec: ArchSpec, terms: Mapping[str, Terms] = _NO_TERMS) -> dict[str, tuple[int, ...]]:
    """What must be in a checkpoint of this spec whose linears are made of these terms: ``checkpoint_tensors`` of its
    program."""
    return checkpoint_tensors(build_program(spec, lambda _: "fp32", terms=terms))


def linear_shapes(spec: ArchSpec) -> dict[str, tuple[int, int]]:
    """Module -> [rows, columns] of every linear of the layers, as the program of the spec alone has it."""
    found = list_linears(spec, build_program(spec, lambda _: "fp32"))
    return {info.module: info.shape for info in found if info.kind == "linear"}


def list_linears(spec: ArchSpec, program: Program) -> tuple[LinearInfo, ...]:
    """Every linear of the blocks once, in the order the program reaches it; the head comes last, tied or not.

    ``program`` is the built one, before choose_numerics, so that taps are the unrounded values.
    """
    shapes = checkpoint_tensors(program)
    refs = {weight.name: weight.ref for weight in program.weights}
    found: dict[str, LinearInfo] = {}
    for index, segment in enumerate(program.segments):
        for op in program.ops[segment.start : segment.stop]:
            if op.kind != "logits" and (op.kind not in ("linear", "experts") or segment.kind != "block"):
                continue
            head = op.kind == "logits"
            for expert, name in enumerate(multiplied(op)):
                tensor = refs[name].checkpoint_name
                if tensor.endswith(COMPUTED):
                    continue
                tap = expert_tap(op.inputs[0], expert) if op.kind == "experts" else op.inputs[0]
                module = spec.head if head and spec.head else tensor.removesuffix(".weight")
                before = found.get(module)
                if before is not None and before.tap != tap:
                    raise ValueError(f"parts of {module} read different values: {before.tap} and {tap}")
                rows, columns = shapes[tensor]
                operations = (op.name,) if before is None else (*before.operations, op.name)
                kind: Literal["linear", "head"] = "head" if head else "linear"
                found[module] = LinearInfo(module, tensor, (rows, columns), tap, index, kind, operations)
    return tuple(found.values())
