# SPDX-License-Identifier: Apache-2.0
"""KeyFolds: keys whose channels can be scaled without changing the function, since queries take the inverse.

A score is a product of query and key, so that channel i of all keys may be divided by any positive number if channel i
of the queries is multiplied by it. Rotary positions mix the two channels of a pair, which must therefore share theirs.
The numbers go into the rows that make keys and queries, or into the gains of their norms, which all heads share. Found
in the Program, so no family is named here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from linnet.compress.block import Block
from linnet.compress.folds import divide_rows
from linnet.compress.statistic import Statistic
from linnet.models.inventory import LinearInfo
from linnet.program.attributes import Attention, Norm, Rope
from linnet.program.program import Op, Program, WeightRef
from linnet.program.traverse import writers


@dataclass(frozen=True)
class Side:
    """What makes keys, or queries: ``tensors`` are the linear's weight and its bias, or a norm's gain (off by
    ``offset``) and its bias."""

    tensors: tuple[WeightRef, ...]
    heads: int
    normed: bool
    offset: float = 0.0


@dataclass(frozen=True)
class KeyFold:
    """``tap``: keys as they are stored, fp32 [tokens, heads * size]; ``query``: what meets them. ``pairs`` [size]:
    equal for channels that share a number. ``readers``: the linears of both."""

    tap: str
    query: str
    key_side: Side
    query_side: Side
    pairs: tuple[int, ...]
    readers: tuple[LinearInfo, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of keys and queries together, channels of a head."""
        size = len(self.pairs)
        return (self.key_side.heads + self.query_side.heads) * size, size

    @property
    def taps(self) -> tuple[str, ...]:
        """The values that a transform looks at."""
        return self.tap, self.query

    def heard(self, statistics: Mapping[str, Mapping[str, Statistic]]) -> Mapping[str, Statistic]:
        """Those of keys by their names, those of queries as ``query_`` and theirs."""
        queries = {f"query_{name}": statistic for name, statistic in statistics[self.query].items()}
        return {**statistics[self.tap], **queries}

    def shared(self, channels: torch.Tensor) -> torch.Tensor:
        """[heads * size] of keys -> [heads, size], as great in each channel as the greatest that shares its number."""
        size = len(self.pairs)
        rows = channels.view(-1, size)
        if self.key_side.normed:
            rows = rows.amax(dim=0, keepdim=True).expand_as(rows)
        index = torch.tensor(self.pairs).expand_as(rows)
        most = torch.zeros(len(rows), max(self.pairs) + 1).scatter_reduce(1, index, rows, "amax")
        return most.gather(1, index)

    def apply(self, block: Block, scales: torch.Tensor) -> torch.Tensor:
        """Divide keys' channels by positive ``scales`` [heads, size], alike within a pair; returns what they became:
        powers of two where a changed tensor stays dense in a narrow type."""
        names = [ref.checkpoint_name for side in (self.key_side, self.query_side) for ref in side.tensors]
        if not all(block.is_exact(name) for name in names):
            scales = torch.exp2(torch.log2(scales).round())
        _divide(block, self.key_side, scales)
        _divide(block, self.query_side, 1 / scales)
        return scales


def _divide(block: Block, side: Side, scales: torch.Tensor) -> None:
    if not side.normed:
        by_row = scales.repeat_interleave(side.heads // len(scales), dim=0).reshape(-1)
        for ref in side.tensors:
            divide_rows(block, ref, by_row)
        return
    for place, ref in enumerate(side.tensors):
        off = side.offset if place == 0 else 0.0
        block.change(ref.checkpoint_name, (block.dense(ref.checkpoint_name) + off) / scales[0] - off)


def key_folds_of(program: Program, linears: Sequence[LinearInfo]) -> dict[int, tuple[KeyFold, ...]]:
    """Of every block that has some, by the segment's index."""
    found: dict[int, tuple[KeyFold, ...]] = {}
    for index, segment in enumerate(program.segments):
        ops = program.ops[segment.start : segment.stop]
        for op in ops:
            if isinstance(op.attributes, Attention):
                written = next(each for each in ops if each.kind == "kv_write" and each.states == op.states)
                fold = _key_fold(program, op, op.attributes, written, linears)
                if fold is not None:
                    found[index] = (*found.get(index, ()), fold)
    return found


def _key_fold(
    program: Program, attention: Op, attributes: Attention, written: Op, linears: Sequence[LinearInfo]
) -> KeyFold | None:
    """None where keys or queries are made in a way that nothing can be folded into."""
    key, query = written.inputs[0], attention.inputs[0]
    sides = [_trace(program, key, attributes.kv_heads), _trace(program, query, attributes.heads)]
    ropes = [rope for _, rope in sides]
    if any(side is None for side, _ in sides) or ropes[0] != ropes[1]:
        return None
    key_side, query_side = (side for side, _ in sides if side is not None)
    if key_side.normed != query_side.normed:
        return None
    makers = {_linear_of(program, name) for name in (key, query)}
    readers = tuple(info for info in linears if makers & set(info.operations))
    return KeyFold(key, query, key_side, query_side, _pairs(attributes.head_size, ropes[0]), readers)


def _trace(program: Program, value: str, heads: int) -> tuple[Side | None, Rope | None]:
    """Back from what is stored: a rotation, a norm of each head, a linear."""
    wrote, refs = writers(program), {weight.name: weight.ref for weight in program.weights}
    op, rope = program.ops[wrote[value]], None
    if isinstance(op.attributes, Rope):
        rope = op.attributes
        op = program.ops[wrote[op.inputs[0]]]
    tensors = tuple(refs[name] for name in op.weights)
    if isinstance(op.attributes, Norm) and op.attributes.flavour == "rms":
        return Side(tensors, heads, True, op.attributes.offset), rope
    return (Side(tensors, heads, False), rope) if op.kind == "linear" else (None, rope)


def _linear_of(program: Program, value: str) -> str:
    wrote = writers(program)
    op = program.ops[wrote[value]]
    while op.kind in ("rope", "norm"):
        op = program.ops[wrote[op.inputs[0]]]
    return op.name


def _pairs(size: int, rope: Rope | None) -> tuple[int, ...]:
    """Channel -> the first of those that turn together."""
    if rope is None:
        return tuple(range(size))
    turned, half = rope.rotary_size, rope.rotary_size // 2
    first = [
        channel if channel >= turned else channel % half if rope.style == "half" else channel // 2 * 2
        for channel in range(size)
    ]
    return tuple(first)
