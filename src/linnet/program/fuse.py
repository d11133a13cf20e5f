# SPDX-License-Identifier: Apache-2.0
"""fuse: neighbours in the op list become one op, so that a step has fewer ops to synchronise after.

``linears``: linears that read one value (q, k and v; gate and up), one distribution of work over all their outputs.
``row_chain``: runs of row-wise ops (residual + norm + quantise; rope + rope + kv_write; activation + quantise), done
row by row while the row is in cache; a value that nobody else reads never reaches the arena.

``low_rank_adds``: what adapters add to linears of one value, rows brought together once.

``gated_linears``: gate and up, their activation and its rounding, a range of outputs at a time: no projection's result
is ever written to memory.

Nothing is renamed or computed differently: a fused op carries its expansion, the very ops it stands for, and
``unfuse(fuse(program)) == program``. Ops of different segments stay apart, so segments keep their meaning.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from linnet.errors import ConfigError
from linnet.program.attributes import FUSED_KINDS, ROW_KINDS, GatedLinears, Linears, LowRankAdds, RowChain
from linnet.program.fused import external_reads, fused_name, is_gated, row_symbol, written
from linnet.program.program import Op, Program
from linnet.program.traverse import declarations, rebuilt


def fuse(program: Program, keep: Iterable[str] = ()) -> Program:
    """Fuse what can be fused. Values in ``keep`` stay readable from outside, as outputs of the op that makes them."""
    if any(op.kind in FUSED_KINDS for op in program.ops):
        raise ConfigError("the program already has fused ops; fuse runs once, after numerics are chosen")
    declared = declarations(program)
    readers = Counter(name for op in program.ops for name in op.inputs)
    visible = {*keep, *program.outputs}

    def merged(run: Sequence[Op]) -> Op:
        if len(run) == 1:
            return run[0]
        name, reads, outputs = fused_name(run), external_reads(run), written(run)
        weights = tuple(dict.fromkeys(name for op in run for name in op.weights))
        if run[0].kind == "linear" and run[-1].kind != "linear":
            return Op("gated_linears", name, reads, outputs[-1:], GatedLinears(), weights, expansion=tuple(run))
        if run[0].kind == "linear":
            return Op("linears", name, reads, outputs, Linears(), weights, expansion=tuple(run))
        if run[0].kind == "low_rank_add":
            return Op("low_rank_adds", name, reads, outputs, LowRankAdds(), expansion=tuple(run))
        inside = Counter(name for op in run for name in op.inputs)
        outputs = tuple(name for name in outputs if name in visible or readers[name] > inside[name])
        states = tuple(dict.fromkeys(name for op in run for name in op.states))
        return Op("row_chain", name, reads, outputs, RowChain(), weights, states, tuple(run))

    def joins(run: Sequence[Op], op: Op) -> bool:
        first = run[0]
        if first.kind == "linear":
            return op.kind == "linear" and op.inputs == first.inputs
        if first.kind == "low_rank_add":
            return op.kind == "low_rank_add" and op.inputs[1:] == first.inputs[1:]
        chain = first.kind in ROW_KINDS and op.kind in ROW_KINDS
        # A gather reads other rows than its own, so what it reads must have been written before the chain.
        foreign = op.kind == "gather" and op.inputs[0] in written(run)
        return chain and not foreign and row_symbol(op, declared) == row_symbol(first, declared)

    def gates(run: Sequence[Op], after: Sequence[Op]) -> bool:
        """Whether the chain ``after`` does nothing but finish what the linears of ``run`` began."""
        inner = written([*run, *after])[:-1]
        seen = any(name in visible or readers[name] > 1 for name in inner)
        return run[0].kind == "linear" and not seen and is_gated([*run, *after], declared)

    def fused(ops: Sequence[Op]) -> list[Op]:
        runs: list[list[Op]] = []
        for op in ops:
            if runs and joins(runs[-1], op):
                runs[-1].append(op)
            else:
                runs.append([op])
        whole: list[list[Op]] = []
        for run in runs:
            if whole and gates(whole[-1], run):
                whole[-1] += run
            else:
                whole.append(run)
        return [merged(run) for run in whole]

    return rebuilt(program, fused)


def unfuse(program: Program, refused: Callable[[Op], bool] = lambda op: True) -> Program:
    """Put the expansion in the place of every fused op that ``refused`` names (all by default)."""

    def expanded(ops: Sequence[Op]) -> list[Op]:
        return [one for op in ops for one in (op.expansion if op.kind in FUSED_KINDS and refused(op) else (op,))]

    return rebuilt(program, expanded)
