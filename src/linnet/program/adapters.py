# SPDX-License-Identifier: Apache-2.0
"""add_adapters: behind every linear of the blocks stands what the adapters of a step's rows add to it.

Adapters come and go while a program is executed, so they are none of its weights: their bounds are known to whoever
runs it, and what they are is given to the executable under the names of these ops.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from linnet.program.attributes import LowRankAdd
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations, rebuilt
from linnet.schemes.terms import COMPUTED, DOWN, OUTLIERS, UP

ADAPTERS = Value("adapters", ("tokens",), "int32")
"""Of each row the adapter that it goes through; -1: none."""

PANEL = 16
"""Outputs that lie side by side where a backend multiplies with them."""

TURNED = ("hadamard", "order_columns")
"""What a linear's input may go through that a linear of a dense model does not have."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds at one site: up @ (factor * (down @ x)); down [rank, columns], up [outputs, rank] of fp32 or
    bf16, C-contiguous."""

    down: npt.NDArray[Any]
    up: npt.NDArray[Any]
    factor: float

    @property
    def rank(self) -> int:
        """Rows of the first matrix."""
        return int(self.down.shape[0])


@dataclass(frozen=True)
class AdapterSite:
    """Where adapters may add something: to all or some rows of one linear of the checkpoint.

    name: of the op. module: the linear's; rows: those of it that are computed there, as in ``WeightRef``, out of
    ``module_rows``. output: the value that is added to.
    """

    name: str
    module: str
    rows: tuple[tuple[int, int], ...] | None
    module_rows: int
    input: str
    output: str
    outputs: int
    columns: int


def adapter_sites(program: Program) -> tuple[AdapterSite, ...]:
    """Every linear of the blocks of a built program, in its order; routers, experts and the head are none."""
    declared = declarations(program)
    refs = {weight.name: weight.ref for weight in program.weights}
    makers = {name: op for op in program.ops for name in op.outputs}
    found: dict[str, AdapterSite] = {}
    read: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for segment in program.segments:
        for op in program.ops[segment.start : segment.stop] if segment.kind == "block" else ():
            if op.kind != "linear":
                continue
            tensor, rows = refs[op.weights[0]].checkpoint_name, refs[op.weights[0]].rows
            module, leaf = _module(tensor)
            if leaf == OUTLIERS:
                continue
            if leaf != UP:
                read[module] = _unturned(op.inputs[0], makers)
            if leaf == DOWN:
                continue
            output = op.weights[0].removesuffix(".weight").removesuffix(".up" if leaf == UP else "")
            width = int(declared[output].shape[-1])
            lengths[module] = max(lengths.get(module, 0), width if rows is None else max(stop for _, stop in rows))
            columns = int(declared[read[module]].shape[-1])
            found[output] = AdapterSite(f"{output}.adapted", module, rows, 0, read[module], output, width, columns)
    return tuple(replace(site, module_rows=lengths[site.module]) for site in found.values())


def adapter_bytes(sites: Sequence[AdapterSite], rank: int) -> int:
    """The most that one adapter of that rank takes: fp32, every narrow side in whole panels (PANEL)."""
    wide = -(-rank // PANEL) * PANEL
    return sum(4 * (wide * site.columns + rank * -(-site.outputs // PANEL) * PANEL) for site in sites)


def _module(tensor: str) -> tuple[str, str]:
    """The linear that a weight belongs to, and what of it the weight is: '' for itself, OUTLIERS also for what follows
    from their places."""
    module = tensor.removesuffix(".weight")
    for leaf in (DOWN, UP, OUTLIERS):
        if module.endswith(f".{leaf}"):
            return module.removesuffix(f".{leaf}"), leaf
    return module, OUTLIERS if tensor.endswith(COMPUTED) else ""


def _unturned(name: str, makers: dict[str, Op]) -> str:
    """What a linear's input was before a checkpoint's own rotation or order."""
    while name in makers and makers[name].kind in TURNED:
        name = makers[name].inputs[0]
    return name


def add_adapters(program: Program) -> Program:
    """The program with a low_rank_add for every site; runs on a built program, before numerics are chosen.

    Each stands in front of the first op that reads its linear's result, so that linears of one value stay neighbours.
    """
    sites = {site.output: site for site in adapter_sites(program)}
    declared = declarations(program)

    def added(ops: Sequence[Op]) -> list[Op]:
        made: list[Op] = []
        waiting: list[AdapterSite] = []
        done: dict[str, str] = {}

        def put() -> None:
            for site in waiting:
                inputs = (site.output, done.get(site.input, site.input), ADAPTERS.name)
                made.append(Op("low_rank_add", site.name, inputs, (site.name,), LowRankAdd()))
                done[site.output] = site.name
            waiting.clear()

        for op in ops:
            if any(site.output in op.inputs for site in waiting):
                put()
            made.append(replace(op, inputs=tuple(done.get(name, name) for name in op.inputs)))
            waiting += [sites[name] for name in op.outputs if name in sites]
        put()
        return made

    values = tuple(replace(declared[site.output], name=site.name) for site in sites.values())
    changed = replace(program, inputs=(*program.inputs, ADAPTERS), values=(*program.values, *values))
    return rebuilt(changed, added)
