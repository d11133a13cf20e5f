# SPDX-License-Identifier: Apache-2.0
"""What a spec says must be in the checkpoint: every tensor with its shape, and every linear with its tap."""

from dataclasses import dataclass
from typing import Literal

from linnet.models.spec import ArchSpec, NormSpec, Projection
from linnet.program.program import Program


@dataclass(frozen=True)
class LinearInfo:
    """One linear of the checkpoint: what compression walks over.

    ``module`` names it in scheme maps and on disk; ``tensor`` is where its dense weight lies (they part ways only for
    a tied head, whose weight is the embedding's). ``tap`` is the fp32 value every op of it reads; ``segment`` the
    index of the segment it runs in; ``operations`` the ops it feeds, several when the tensor is fused.
    """

    module: str
    tensor: str
    shape: tuple[int, int]
    tap: str
    segment: int
    kind: Literal["linear", "head"]
    operations: tuple[str, ...]


def _projections(spec: ArchSpec) -> tuple[Projection, ...]:
    attention, mlp = spec.attention, spec.mlp
    gate = () if mlp.gate is None else (mlp.gate,)
    return (attention.query, attention.key, attention.value, attention.output, *gate, mlp.up, mlp.down)


def required_tensors(spec: ArchSpec) -> dict[str, tuple[int, ...]]:
    """Dense tensor name -> shape of the whole checkpoint tensor, in the order the program reads them."""
    tensors: dict[str, tuple[int, ...]] = {}

    def norm(module: str | None, rule: NormSpec, size: int, layer: int = 0) -> None:
        if module is not None:
            name = module.format(layer=layer)
            tensors[f"{name}.weight"] = (size,)
            if rule.bias:
                tensors[f"{name}.bias"] = (size,)

    hidden, attention, mlp = spec.hidden_size, spec.attention, spec.mlp
    tensors[f"{spec.embedding}.weight"] = (spec.vocabulary_size, hidden)
    norm(spec.embedding_norm, spec.norm, hidden)
    for layer in range(spec.layers):
        for module in (attention.norm, attention.post_norm, mlp.norm, mlp.post_norm):
            norm(module, spec.norm, hidden, layer)
        if attention.head_norm is not None:
            norm(attention.query_norm, attention.head_norm, attention.head_size, layer)
            norm(attention.key_norm, attention.head_norm, attention.head_size, layer)
        for projection in _projections(spec):
            name = projection.module.format(layer=layer)
            tensors[f"{name}.weight"] = (projection.tensor_rows, projection.columns)
            if projection.bias:
                tensors[f"{name}.bias"] = (projection.tensor_rows,)
    norm(spec.final_norm, spec.norm, hidden)
    if not spec.tied_head:
        tensors[f"{spec.head}.weight"] = (spec.vocabulary_size, hidden)
    return tensors


def list_linears(spec: ArchSpec, program: Program) -> tuple[LinearInfo, ...]:
    """Every linear once, in the order the program reaches it; the head comes last, tied or not.

    ``program`` is the built one, before choose_numerics, so that taps are the unrounded values.
    """
    shapes = required_tensors(spec)
    refs = {weight.name: weight.ref for weight in program.weights}
    found: dict[str, LinearInfo] = {}
    for index, segment in enumerate(program.segments):
        for op in program.ops[segment.start : segment.stop]:
            if op.kind not in ("linear", "logits"):
                continue
            tensor = refs[op.weights[0]].checkpoint_name
            head = op.kind == "logits"
            module = spec.head if head else tensor.removesuffix(".weight")
            before = found.get(module)
            if before is not None and before.tap != op.inputs[0]:
                raise ValueError(f"parts of {module} read different values: {before.tap} and {op.inputs[0]}")
            rows, columns = shapes[tensor]
            operations = (op.name,) if before is None else (*before.operations, op.name)
            kind: Literal["linear", "head"] = "head" if head else "linear"
            found[module] = LinearInfo(module, tensor, (rows, columns), op.inputs[0], index, kind, operations)
    return tuple(found.values())
