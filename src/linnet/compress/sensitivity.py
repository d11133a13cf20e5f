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
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from linnet.backends.reference.interpreter import run_segment
from linnet.compress.algorithm import Fit
from linnet.compress.block import Block
from linnet.compress.gradients import BACK, RowGradients, drawn_tokens
from linnet.compress.statistic import Statistic
from linnet.errors import CheckpointError
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource
from linnet.program.program import Segment
from linnet.schemes.scheme import LinearScheme
from linnet.text.rows import CalibrationRows


@dataclass(frozen=True)
class Wanted:
    """A linear of a block, what it may become, and by whom."""

    info: LinearInfo
    schemes: Sequence[LinearScheme]
    fit: Fit


def sensitivities(
    source: ModelSource,
    rows: CalibrationRows,
    drawn: int,
    wanted: Sequence[Wanted],
    seed: int,
    scratch: Path,
    told: Callable[[float], None],
) -> dict[str, list[float]]:
    """Module -> the KL in nats per token of compressing it alone, for each of its schemes.

    The fits hear all of the ``rows``; on the first ``drawn`` of them KL is measured. Rows on
    which the output is NaN or infinite do not count. ``told`` hears fractions of the work and may raise Interrupted.
    CheckpointError if no row is left.
    """
    return _Passes(source, rows, drawn, wanted, seed, scratch, told).run()


class _Passes:
    """See ``sensitivities``."""

    def __init__(
        self,
        source: ModelSource,
        rows: CalibrationRows,
        drawn: int,
        wanted: Sequence[Wanted],
        seed: int,
        scratch: Path,
        told: Callable[[float], None],
    ) -> None:
        self.source, self.rows, self.wanted, self.seed, self.told = source, rows, wanted, seed, told
        segments = len(source.program.segments)
        # besides forth and back every row runs once more through every block, for what the fits hear
        self._unit = 1 / ((2 * len(rows) + BACK * drawn) * segments)
        self._gradients = RowGradients(source, rows, drawn, scratch, lambda units: told(units * self._unit))

    def run(self) -> dict[str, list[float]]:
        """Forth through all segments, back through all blocks."""
        self._gradients.forth()
        upstream = self._gradients.head(drawn_tokens(self.seed))
        count = sum(each is not None for each in upstream)
        if count == 0:
            raise CheckpointError("the model's output holds NaN or infinity on every one of the calibration rows")
        found: dict[str, list[float]] = {}
        for index in range(len(self.source.program.segments) - 2, 0, -1):
            sums, upstream = self._back(index, upstream)
            found |= {
                module: [each / (2 * count * self.rows.token_ids.shape[1]) for each in costs]
                for module, costs in sums.items()
            }
        return found

    def _back(
        self, index: int, upstream: Sequence[torch.Tensor | None]
    ) -> tuple[dict[str, list[float]], list[torch.Tensor | None]]:
        """The sums of squares of a block's linears, and the gradients of its input."""
        segment = self.source.program.segments[index]
        block = Block(segment, self.source)
        wanted = [each for each in self.wanted if each.info.segment == index]
        errors = self._errors(index, segment, block, wanted)
        sums = {each.info.module: [0.0] * len(each.schemes) for each in wanted}
        leaves = {each.info.tensor: block.dense(each.info.tensor).clone().requires_grad_() for each in wanted}

        def add() -> None:
            for each in wanted:
                gradient = leaves[each.info.tensor].grad
                assert gradient is not None
                for place, error in enumerate(errors[each.info.module]):
                    along = torch.einsum("rc,rc->r", gradient, error)
                    sums[each.info.module][place] += float(along.square().sum(dtype=torch.float64))
                leaves[each.info.tensor].grad = None

        return sums, self._gradients.through(index, block, leaves, upstream, add)

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

        def on_tap(name: str, x: torch.Tensor, _: torch.Tensor | None = None) -> None:
            if torch.isfinite(x.sum()):
                for statistic in statistics[name].values():
                    statistic.add(x)

        for row in range(len(self.rows)):
            if taps:
                inputs = self._gradients.inputs(index, row)
                run_segment(self.source.program, segment, inputs, None, weights, taps, on_tap)
            self.told(self._unit)
        found: dict[str, list[torch.Tensor]] = {}
        for each in wanted:
            weight, module = block.dense(each.info.tensor), each.info.module
            found[module] = []
            for scheme in each.schemes:
                fitted = each.fit.fit(module, weight, scheme, statistics[each.info.tap], lambda _: self.told(0.0))
                found[module].append(torch.from_numpy(fitted.whole()).sub_(weight))
        return found
