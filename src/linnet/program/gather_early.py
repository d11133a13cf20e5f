# SPDX-License-Identifier: Apache-2.0
"""gather_early: rows nobody asks for are dropped before the last block's projections instead of after them.

Of every token only keys and values are needed later, and attention reads them all. What follows the last attention
works row by row, so of a prompt's tokens it is done for the output rows alone: one row of a prompt of 512 tokens, none
of a chunk that is not the prompt's last. A row's numbers do not depend on the rows beside it, so no bit changes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from linnet.program.attributes import Gather
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations, rebuilt

ROW_WISE = frozenset(
    {
        "linear",
        "sparse_linear",
        "norm",
        "add",
        "scale",
        "softcap",
        "cast",
        "quantise",
        "dequantise",
        "gate",
        "hadamard",
        "router",
        "route",
        "experts",
        "combine",
        "low_rank_add",
    }
)
"""Kinds that read their own rows only: rope reads positions beside them, and kv_write is for every token."""


def gather_early(program: Program, keep: Iterable[str] = ()) -> Program:
    """The program with its gather in front of all row-wise ops whose results only its rows need; runs before ``fuse``.

    Values in ``keep`` have all their rows still, and so has what they are made of. A gathered ``x`` is ``x.rows``; what
    is made of it keeps its name, and the value that was gathered before is dropped: its readers read its source.
    """
    gathers = [op for op in program.ops if op.kind == "gather"]
    visible = {*keep, *program.outputs}
    if len(gathers) != 1 or gathers[0].outputs[0] in visible:
        return program
    gather = gathers[0]
    (source, chosen), (dropped,) = gather.inputs, gather.outputs
    moved = _only_for(gather, program, visible)
    if not moved:
        return program
    declared = declarations(program)
    given = {value.name for value in program.inputs}
    rows = declared[dropped].shape[0]
    values: dict[str, Value] = {}

    def narrow(name: str, of: str) -> None:
        values[name] = replace(declared[of], name=name, shape=(rows, *declared[of].shape[1:]))

    def moved_forward(ops: Sequence[Op]) -> list[Op]:
        found: list[Op] = []
        for op in ops:
            if op is gather:
                continue
            if op.name not in moved:
                found.append(replace(op, inputs=tuple(source if name == dropped else name for name in op.inputs)))
                continue
            inputs = tuple(name if name in values or name in given else f"{name}.rows" for name in op.inputs)
            for name, own in zip(op.inputs, inputs, strict=True):
                if own not in values and own not in given:
                    narrow(own, name)
                    found.append(Op("gather", own, (name, chosen), (own,), Gather()))
            for name in op.outputs:
                narrow(name, name)
            if op.kind == "low_rank_add":  # it asks of each row which token it is
                inputs = (*inputs, chosen)
            found.append(replace(op, inputs=inputs))
        return found

    changed = rebuilt(program, moved_forward)
    kept = (value for value in program.values if value.name not in values and value.name != dropped)
    return replace(changed, values=(*kept, *values.values()))


def _only_for(gather: Op, program: Program, visible: set[str]) -> set[str]:
    """Names of the row-wise ops all of whose readers are among themselves or the gather.

    What they read must be made by them or be fp32: rows of rounded values cannot be gathered.
    """
    declared = declarations(program)
    given = {value.name for value in program.inputs}
    readers: dict[str, set[str]] = defaultdict(set)
    for op in program.ops:
        for name in op.inputs:
            readers[name].add(op.name)
    before = program.ops[: program.ops.index(gather)]
    barred: set[str] = set()
    while True:
        found = {gather.name}
        for op in reversed(before):
            read = {reader for name in op.outputs for reader in readers[name]}
            alone = read and read <= found and visible.isdisjoint(op.outputs)
            if op.kind in ROW_WISE and alone and op.name not in barred:
                found.add(op.name)
        moved = [op for op in before if op.name in found]
        made = {name for op in moved for name in op.outputs} | given
        stuck = {op.name for op in moved for name in op.inputs if name not in made and declared[name].dtype != "fp32"}
        if not stuck:
            return found - {gather.name}
        barred |= stuck
