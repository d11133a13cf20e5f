# SPDX-License-Identifier: Apache-2.0
"""What the codes of one linear cost at the model's output, for many linears and schemes from one pass forth and back.

To second order a change d of a weight costs KL = 1/2 sum_t E (g_t . d)^2, where g_t is the gradient of the
log-probability of a token that the model itself draws at position t (the Fisher information). Tokens drawn at one
position know nothing of those at another, so that the gradient of a whole row's log-probability does for all its
positions. Errors of different output rows are taken as independent of each other, which lets thousands of output rows
speak instead of a few calibration rows: 1/2 sum_i (g_i . d_i)^2. (Diagonal: Optimal Brain Damage, LeCun et al. 1990;
SqueezeLLM, Kim et al. 2023. Here an output row's weights stay together, since GPTQ's errors of a row make up for each
other.) d is what the recipe's own fit does, on the dense model's activations: what rounding to nearest would cost ranks
linears otherwise than what GPTQ costs.

Order of side effects: every block's input rows go to files of a scratch directory on the way forth; on the way back one
block's weights are in memory at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress.algorithm import Fit
from linnet.compress.block import Block
from linnet.compress.rows import RowStore
from linnet.compress.statistic import Statistic
from linnet.errors import CheckpointError
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource
from linnet.program.program import Segment
from linnet.schemes.scheme import LinearScheme


@dataclass(frozen=True)
class Wanted:
    """A linear of a block, what it may become, and by whom."""

    info: LinearInfo
    schemes: Sequence[LinearScheme]
    fit: Fit


def sensitivities(
    source: ModelSource,
    rows: np.ndarray,
    drawn: int,
    wanted: Sequence[Wanted],
    seed: int,
    scratch: Path,
    told: Callable[[float], None],
) -> dict[str, list[float]]:
    """Module -> the KL in nats per token of compressing it alone, for each of its schemes.

    ``rows``: int32 [rows, tokens], all of which the fits hear; on the first ``drawn`` of them KL is measured. Rows on
    which the output is NaN or infinite do not count. ``told`` hears fractions of the work and may raise Interrupted.
    CheckpointError if no row is left.
    """
    return _Passes(source, rows, drawn, wanted, seed, scratch, told).run()


@dataclass
class _Passes:
    source: ModelSource
    rows: np.ndarray
    drawn: int
    wanted: Sequence[Wanted]
    seed: int
    scratch: Path
    told: Callable[[float], None]

    def run(self) -> dict[str, list[float]]:
        """Forth through all segments, back through all blocks."""
        self._store = RowStore(self.scratch, self.source.spec.hidden_size)
        segments = self.source.program.segments
        self._unit = 1 / ((2 * len(self.rows) + 3 * self.drawn) * len(segments))
        for index, segment in enumerate(segments[:-1]):
            self._forth(index, segment)
        gradients, count = self._head(len(segments) - 1, segments[-1])
        if count == 0:
            raise CheckpointError("the model's output holds NaN or infinity on every one of the calibration rows")
        found: dict[str, list[float]] = {}
        for index in range(len(segments) - 2, 0, -1):
            sums, gradients = self._back(index, segments[index], gradients)
            found |= {
                module: [each / (2 * count * self.rows.shape[1]) for each in costs] for module, costs in sums.items()
            }
        return found

    def _inputs(self, index: int, segment: Segment, row: int, ids: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        inputs = whole_sequence_inputs(torch.from_numpy((self.rows if ids is None else ids)[row : row + 1].copy()))
        if index > 0:
            length = self.rows.shape[1]
            inputs[segment.inputs[0]] = self._store.read(index, row * length, (row + 1) * length)
        return inputs

    @torch.no_grad()
    def _forth(self, index: int, segment: Segment) -> None:
        block, ids = Block(segment, self.source), self.rows
        weights = block.running()
        if segment.kind == "embed":  # only the table's rows that occur are read
            used, places = np.unique(self.rows, return_inverse=True)
            table, ids = block.table(), places.reshape(self.rows.shape).astype(np.int32)
            assert isinstance(table, np.ndarray)
            weights[self.source.program.ops[segment.start].weights[0]] = to_torch(table[used])
        with self._store.write(index + 1) as written:
            for row in range(len(ids)):
                inputs = self._inputs(index, segment, row, ids)
                written.append(run_segment(self.source.program, segment, inputs, None, weights)[segment.outputs[0]])
                self.told(self._unit)

    def _head_weights(self, segment: Segment) -> dict[str, torch.Tensor]:
        """All of the head's weights in fp32."""
        refs = {weight.name: weight.ref for weight in self.source.program.weights}
        weights = Block(segment, self.source).running()
        for op in self.source.program.ops[segment.start : segment.stop]:
            for name in op.weights:
                if name not in weights:
                    stored = self.source.weight(refs[name])
                    assert isinstance(stored, np.ndarray)
                    weights[name] = to_torch(stored)
        return weights

    def _head(self, index: int, segment: Segment) -> tuple[list[torch.Tensor | None], int]:
        """For every row the gradient of what the last block hands over (None: does not count), and how many count.

        The gradient of a drawn token's -log p by the logits is p, the probabilities, less one at that token.
        """
        weights, gradients = self._head_weights(segment), list[torch.Tensor | None]()
        generator = torch.Generator().manual_seed(self.seed)
        for row in range(self.drawn):
            inputs = self._inputs(index, segment, row)
            hidden = inputs[segment.inputs[0]].requires_grad_()
            with torch.enable_grad():
                logits = run_segment(self.source.program, segment, inputs, None, weights)[segment.outputs[0]]
            upstream = logits.detach().softmax(dim=-1)
            if torch.isfinite(upstream.sum()):
                drawn = torch.multinomial(upstream, 1, generator=generator)
                upstream.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0))
                logits.backward(upstream)  # type: ignore[no-untyped-call]
            gradients.append(hidden.grad)
            self.told(3 * self._unit)
        return gradients, sum(each is not None for each in gradients)

    def _back(
        self, index: int, segment: Segment, upstream: Sequence[torch.Tensor | None]
    ) -> tuple[dict[str, list[float]], list[torch.Tensor | None]]:
        """The sums of squares of a block's linears, and the gradients of its input."""
        block = Block(segment, self.source)
        wanted = [each for each in self.wanted if each.info.segment == index]
        errors = self._errors(index, segment, block, wanted)
        sums = {each.info.module: [0.0] * len(each.schemes) for each in wanted}
        leaves = {each.info.tensor: block.dense(each.info.tensor).clone().requires_grad_() for each in wanted}
        gradients: list[torch.Tensor | None] = []
        for row, from_above in enumerate(upstream):
            if from_above is None:
                gradients.append(None)
                continue
            inputs = self._inputs(index, segment, row)
            hidden = inputs[segment.inputs[0]].requires_grad_()
            with torch.enable_grad():
                result = run_segment(self.source.program, segment, inputs, None, block.running_with(leaves))
                result[segment.outputs[0]].backward(from_above)  # type: ignore[no-untyped-call]
            gradients.append(hidden.grad)
            for each in wanted:
                gradient = leaves[each.info.tensor].grad
                assert gradient is not None
                for place, error in enumerate(errors[each.info.module]):
                    along = torch.einsum("rc,rc->r", gradient, error)
                    sums[each.info.module][place] += float(along.square().sum(dtype=torch.float64))
                leaves[each.info.tensor].grad = None
            self.told(3 * self._unit)
        return sums, gradients

    @torch.no_grad()
    def _errors(
        self, index: int, segment: Segment, block: Block, wanted: Sequence[Wanted]
    ) -> dict[str, list[torch.Tensor]]:
        """Module -> what each of its schemes changes in the weight, fp32."""
        statistics: dict[str, dict[str, Statistic]] = {}
        for each in wanted:
            of_tap = statistics.setdefault(each.info.tap, {})
            of_tap |= {name: kind(each.info.shape[1]) for name, kind in each.fit.statistics.items()}
        taps, weights = [tap for tap, of_tap in statistics.items() if of_tap], block.running()

        def on_tap(name: str, x: torch.Tensor) -> None:
            if torch.isfinite(x.sum()):
                for statistic in statistics[name].values():
                    statistic.add(x)

        for row in range(len(self.rows)):
            if taps:
                run_segment(
                    self.source.program, segment, self._inputs(index, segment, row), None, weights, taps, on_tap
                )
            self.told(self._unit)
        found: dict[str, list[torch.Tensor]] = {}
        for each in wanted:
            weight, module = block.dense(each.info.tensor), each.info.module
            found[module] = []
            for scheme in each.schemes:
                fitted = each.fit.fit(module, weight, scheme, statistics[each.info.tap], lambda _: self.told(0.0))
                found[module].append(torch.from_numpy(fitted.whole()).sub_(weight))
        return found
