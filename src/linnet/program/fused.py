# SPDX-License-Identifier: Apache-2.0
"""What a fused op is: everything about it follows from its expansion, and ``check_fused`` says whether it does."""

from collections.abc import Mapping, Sequence

from linnet.program.attributes import FUSED_KINDS, ROW_KINDS, Gate
from linnet.program.prescribed import keeps_codes
from linnet.program.program import Dimension, Op, Value
from linnet.program.signatures import require
from linnet.schemes.scheme import Scheme

WIDEST_GROUP = 256
"""Columns that may share a scale for a rounding to be done where its input is made."""


def written(run: Sequence[Op]) -> tuple[str, ...]:
    """Every value the ops write, in order."""
    return tuple(name for op in run for name in op.outputs)


def external_reads(run: Sequence[Op]) -> tuple[str, ...]:
    """Values the ops read and do not write themselves, in order of first use."""
    inside = set(written(run))
    return tuple(dict.fromkeys(name for op in run for name in op.inputs if name not in inside))


def row_symbol(op: Op, declared: Mapping[str, Value]) -> tuple[Dimension, ...]:
    """What the op's rows are: all but the last dimension of what it writes; kv_write stores one row per token."""
    return declared[op.outputs[0]].shape[:-1] if op.outputs else ("tokens",)


def fused_name(run: Sequence[Op]) -> str:
    """``layers.0.attention.query+key+value``: the parts all names begin with, then the rest of each."""
    names = [op.name.split(".") for op in run]
    shared = 0
    while len({tuple(name[: shared + 1]) for name in names}) == 1 and all(len(name) > shared + 1 for name in names):
        shared += 1
    return ".".join([*names[0][:shared], "+".join(".".join(name[shared:]) for name in names)])


def is_gated(run: Sequence[Op], declared: Mapping[str, Value]) -> bool:
    """One or two linears of one input, the activation of exactly their outputs, and at most one rounding of it.

    The rounding must not look further than a few outputs: a scale for a whole row needs all of them. One whose result
    is not multiplied as integers is a step of its own.
    """
    linears = [op for op in run if op.kind == "linear"]
    rest = list(run[len(linears) :])
    if not rest or rest[0].kind != "gate" or rest[0].inputs != written(linears) or len(rest) > 2:
        return False
    if isinstance(rest[0].attributes, Gate) and rest[0].attributes.pairs:
        return False
    if any(op.kind != "linear" or op.inputs != run[0].inputs for op in run[: len(linears)]):
        return False
    if len(rest) == 1:
        return True
    scheme = declared[rest[1].outputs[0]].dtype if rest[1].outputs else None
    narrow = isinstance(scheme, Scheme) and keeps_codes(scheme) and (scheme.group_size or 1 << 30) <= WIDEST_GROUP
    few = narrow or not isinstance(scheme, Scheme)
    return rest[1].kind in ("quantise", "cast") and rest[1].inputs == rest[0].outputs and few


def check_fused(op: Op, declared: Mapping[str, Value]) -> None:
    """Raises ProgramError if a fused op is not what its expansion says."""
    run = op.expansion
    if op.kind not in FUSED_KINDS:
        return
    require(len(run) > 1, f"op {op.name} ({op.kind}) fuses {len(run)} ops, expected at least 2")
    require(not any(inner.expansion for inner in run), f"op {op.name} ({op.kind}): an op of its expansion has its own")
    require(op.inputs == external_reads(run), f"op {op.name} ({op.kind}) reads {op.inputs}, its expansion does not")
    inside = written(run)
    good = op.outputs == tuple(name for name in inside if name in set(op.outputs))
    require(good, f"op {op.name} ({op.kind}) writes {op.outputs}, its expansion {inside}")
    for what in ("weights", "states"):
        found = tuple(dict.fromkeys(name for inner in run for name in getattr(inner, what)))
        require(getattr(op, what) == found, f"op {op.name} ({op.kind}): its {what} are not those of its expansion")
    if op.kind == "gated_linears":
        good = is_gated(run, declared) and op.outputs == inside[-1:]
        require(good, f"op {op.name} (gated_linears) is not linears, activation and rounding that write one value")
        return
    if op.kind == "linears":
        good = all(inner.kind == "linear" and inner.inputs == run[0].inputs for inner in run)
        require(good, f"op {op.name} (linears) holds something else than linears of one input")
        require(op.outputs == inside, f"op {op.name} (linears) writes {op.outputs}, its expansion {inside}")
        return
    if op.kind == "low_rank_adds":
        good = all(inner.kind == "low_rank_add" and inner.inputs[1:] == run[0].inputs[1:] for inner in run)
        require(good, f"op {op.name} (low_rank_adds) holds something else than low_rank_adds of one input")
        require(op.outputs == inside, f"op {op.name} (low_rank_adds) writes {op.outputs}, its expansion {inside}")
        return
    kinds = sorted({inner.kind for inner in run} - set(ROW_KINDS))
    require(not kinds, f"op {op.name} (row_chain) holds {', '.join(kinds)}, which do not work row by row")
    symbols = {row_symbol(inner, declared) for inner in run}
    require(
        len(symbols) == 1,
        f"op {op.name} (row_chain): rows are {', '.join(sorted('x'.join(map(str, symbol)) for symbol in symbols))}",
    )
    foreign = [inner.name for inner in run if inner.kind == "gather" and inner.inputs[0] in inside]
    require(not foreign, f"op {op.name} (row_chain): {', '.join(foreign)} reads other rows of what the chain writes")
