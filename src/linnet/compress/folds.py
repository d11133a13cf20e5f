# SPDX-License-Identifier: Apache-2.0
"""Folds: values whose columns can be scaled without changing the function, and where the inverse goes.

What a linear reads may be divided per column by any positive numbers if its weight's columns are multiplied by them.
The division is folded into whatever made the value: a norm's gain and bias, or the rows of the linear that comes before
it (up for down behind a gate or a ReLU; v for o, where the query heads of a group share their numbers).
Found in the Program, so no family is named here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linnet.compress.block import Block
from linnet.compress.statistic import Statistic
from linnet.models.inventory import LinearInfo
from linnet.program.attributes import Attention, Gate, Norm
from linnet.program.program import Op, Program, WeightRef
from linnet.program.traverse import declarations, writers


@dataclass(frozen=True)
class Fold:
    """``tap`` fp32 [tokens, width] is read by ``readers`` alone. ``channels`` [width]: the source's channel that each
    column comes from. The source is a norm (``gain``, its ``offset``) or rows of a linear (``weight``)."""

    tap: str
    readers: tuple[LinearInfo, ...]
    channels: tuple[int, ...]
    gain: str | None = None
    offset: float = 0.0
    weight: WeightRef | None = None
    bias: WeightRef | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all readers together, columns."""
        return sum(info.shape[0] for info in self.readers), len(self.channels)

    @property
    def taps(self) -> tuple[str, ...]:
        """The values that a transform looks at."""
        return (self.tap,)

    def heard(self, statistics: Mapping[str, Mapping[str, Statistic]]) -> Mapping[str, Statistic]:
        """What was summed of them, tap -> name -> sum, as a transform is given it."""
        return statistics[self.tap]

    def shared(self, columns: torch.Tensor) -> torch.Tensor:
        """Per column -> per column, those of one channel of the source all as great as the greatest of them."""
        index = torch.tensor(self.channels)
        most = torch.zeros(max(self.channels) + 1).scatter_reduce(0, index, columns, "amax")
        return most[index]

    def apply(self, block: Block, scales: torch.Tensor) -> torch.Tensor:
        """Divide the value's columns by positive ``scales`` [width], alike within a channel; returns what they became.

        Where all changed weights will be packed, a norm's gain is rounded to the type it is stored in, and the readers
        take exactly what it divides by then; otherwise scales become powers of two, which every type divides exactly.
        """
        tensors = [info.tensor for info in self.readers]
        tensors += [ref.checkpoint_name for ref in (self.weight, self.bias) if ref is not None]
        if not all(block.is_exact(name) for name in tensors):
            scales = torch.exp2(torch.log2(scales).round())
        by_channel = torch.ones(max(self.channels) + 1)
        by_channel[torch.tensor(self.channels)] = scales
        if self.gain is not None:
            by_channel = self._divide_gain(block, self.gain, by_channel)
        for ref in (self.weight, self.bias):
            if ref is not None:
                divide_rows(block, ref, by_channel)
        scales = by_channel[torch.tensor(self.channels)]
        for name in dict.fromkeys(info.tensor for info in self.readers):
            block.change(name, block.dense(name) * scales)
        return scales

    def _divide_gain(self, block: Block, name: str, scales: torch.Tensor) -> torch.Tensor:
        before = block.dense(name) + self.offset
        block.change(name, before / scales - self.offset)
        after = block.dense(name) + self.offset
        lost = (after == 0) | (before == 0)  # too small for the type, or nothing to divide
        if lost.any():
            block.change(name, torch.where(lost, before, after) - self.offset)
        return torch.where(lost, torch.ones_like(before), before / after)


def divide_rows(block: Block, ref: WeightRef, scales: torch.Tensor) -> None:
    """The rows of a weight or bias that ``ref`` takes, each by its number."""
    whole = block.dense(ref.checkpoint_name).clone()
    at = 0
    for start, stop in ref.rows or ((0, len(whole)),):
        part = scales[at : at + stop - start]
        whole[start:stop] /= part if whole.ndim == 1 else part[:, None]
        at += stop - start
    block.change(ref.checkpoint_name, whole)


def folds_of(program: Program, linears: Sequence[LinearInfo]) -> dict[int, tuple[Fold, ...]]:
    """The folds of every block by the segment's index, in the order of their values; ``linears``: all there are."""
    graph, found = _Graph(program), dict[int, tuple[Fold, ...]]()
    for tap, index in dict.fromkeys((info.tap, info.segment) for info in linears):
        readers = tuple(info for info in linears if info.segment == index and info.tap == tap)
        operations = {name for info in readers for name in info.operations}
        inside = program.segments[index].kind == "block" and graph.written(tap) >= program.segments[index].start
        if inside and graph.readers[tap] == operations:
            source = graph.source(tap)
            if source is not None:
                fold = Fold(tap, readers, **source)
                found[index] = (*found.get(index, ()), fold)
    return found


class _Graph:
    """Who writes and reads what in a program."""

    def __init__(self, program: Program) -> None:
        self._program, self._writers, self._values = program, writers(program), declarations(program)
        self._refs = {weight.name: weight.ref for weight in program.weights}
        self._uses = Counter(self._refs[name] for op in program.ops for name in op.weights)
        self.readers: dict[str, set[str]] = {}
        for op in program.ops:
            for name in op.inputs:
                self.readers.setdefault(name, set()).add(op.name)

    def written(self, value: str) -> int:
        """Index of the op that writes it, -1 for an input."""
        return self._writers.get(value, -1)

    def source(self, tap: str) -> dict[str, Any] | None:
        """What makes the value, as fields of Fold; None if its columns cannot be divided."""
        op, width = self._program.ops[self._writers[tap]], self._values[tap].shape[1]
        assert isinstance(width, int)
        same = tuple(range(width))
        match op.attributes:
            case Norm(size=size, offset=offset) if size == width and self._alone(op):
                gain, bias = self._weight_and_bias(op)
                return {"channels": same, "gain": gain.checkpoint_name, "offset": offset, "bias": bias}
            case Gate(activation=activation):
                if len(op.inputs) == 2:
                    return self._linear(op.inputs[1], same)
                return self._linear(op.inputs[0], same) if activation == "relu" else None
            case Attention(heads=heads, kv_heads=kv_heads):
                size, group = width // heads, heads // kv_heads
                channels = tuple(column // size // group * size + column % size for column in range(width))
                ops = self._program.ops
                written = next(each for each in ops if each.kind == "kv_write" and each.states == op.states)
                return self._linear(written.inputs[1], channels)
        return None

    def _linear(self, value: str, channels: tuple[int, ...]) -> dict[str, Any] | None:
        """The linear that makes ``value``, if one op alone reads that and nobody shares its rows."""
        op = self._program.ops[self._writers[value]]
        if op.kind != "linear" or len(self.readers[value]) != 1 or not self._alone(op):
            return None
        weight, bias = self._weight_and_bias(op)
        return {"channels": channels, "weight": weight, "bias": bias}

    def _alone(self, op: Op) -> bool:
        """Whether no other op reads this one's weights."""
        return all(self._uses[self._refs[name]] == 1 for name in op.weights)

    def _weight_and_bias(self, op: Op) -> tuple[WeightRef, WeightRef | None]:
        refs = [self._refs[name] for name in op.weights]
        return refs[0], refs[1] if len(refs) > 1 else None
