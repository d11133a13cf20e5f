# SPDX-License-Identifier: Apache-2.0
"""What a number at the model's output feels of its weights: rows forth through all segments, and back block by block.

Order of side effects: every block's input rows go to files of a scratch directory on the way forth; on the way back one
block's weights are in memory at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress.block import Block
from linnet.compress.rows import RowStore
from linnet.models.load import ModelSource
from linnet.program.program import Segment
from linnet.text.rows import CalibrationRows

BACK = 3
"""What a row takes through a segment and back, when forth alone takes 1."""

OfOutput = Callable[[torch.Tensor, int], torch.Tensor]
"""(fp32 logits [tokens, vocabulary] of a row, its number) -> the gradient of the number by them. For a loss
-log p[token] it is the probabilities, less one at that token."""


@dataclass
class RowGradients:
    """The first ``back`` of the ``rows`` go back too. ``told`` hears how much has been done,
    in rows through a segment (BACK), and may raise Interrupted."""

    source: ModelSource
    rows: CalibrationRows
    back: int
    scratch: Path
    told: Callable[[float], None]

    def __post_init__(self) -> None:
        self._store = RowStore(self.scratch, self.source.spec.hidden_size)

    @property
    def work(self) -> float:
        """What ``told`` hears in all."""
        blocks = len(self.source.program.segments) - 2
        return len(self.rows) * (blocks + 1) + BACK * self.back * (blocks + 1)

    def inputs(self, index: int, row: int, ids: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """What segment ``index`` reads of a row; ``ids`` in the place of the rows."""
        segment = self.source.program.segments[index]
        tokens = (self.rows.token_ids if ids is None else ids)[row : row + 1].copy()
        inputs = whole_sequence_inputs(torch.from_numpy(tokens), self.rows.sequences([row]))
        if index > 0:
            length = tokens.shape[1]
            inputs[segment.inputs[0]] = self._store.read(index, row * length, (row + 1) * length)
        return inputs

    @torch.no_grad()
    def forth(self) -> None:
        """All rows through all segments but the head."""
        for index, segment in enumerate(self.source.program.segments[:-1]):
            block, ids = Block(segment, self.source), self.rows.token_ids
            weights = block.running()
            if segment.kind == "embed":  # only the table's rows that occur are read
                used, places = np.unique(ids, return_inverse=True)
                table, ids = block.table(), places.reshape(ids.shape).astype(np.int32)
                assert isinstance(table, np.ndarray)
                weights[self.source.program.ops[segment.start].weights[0]] = to_torch(table[used])
            with self._store.write(index + 1) as written:
                for row in range(len(ids)):
                    inputs = self.inputs(index, row, ids)
                    written.append(run_segment(self.source.program, segment, inputs, None, weights)[segment.outputs[0]])
                    self.told(1)

    def head(self, of_output: OfOutput) -> list[torch.Tensor | None]:
        """For every row the gradient by what the last block hands over; None where the output is NaN or infinite."""
        index = len(self.source.program.segments) - 1
        segment = self.source.program.segments[index]
        weights, gradients = self._head_weights(segment), list[torch.Tensor | None]()
        for row in range(self.back):
            inputs = self.inputs(index, row)
            hidden = inputs[segment.inputs[0]].requires_grad_()
            with torch.enable_grad():
                logits = run_segment(self.source.program, segment, inputs, None, weights)[segment.outputs[0]]
            if torch.isfinite(logits.detach().sum()):
                logits.backward(of_output(logits.detach(), row))  # type: ignore[no-untyped-call]
            gradients.append(hidden.grad)
            self.told(BACK)
        return gradients

    def through(
        self,
        index: int,
        block: Block,
        leaves: Mapping[str, torch.Tensor],
        upstream: Sequence[torch.Tensor | None],
        seen: Callable[[], None] = lambda: None,
    ) -> list[torch.Tensor | None]:
        """Back through a block: ``upstream`` by its output -> by its input. ``leaves``: checkpoint name -> fp32 values
        that want gradients, to whose ``grad`` every row adds its own; ``seen`` is called after each row."""
        segment, gradients = self.source.program.segments[index], list[torch.Tensor | None]()
        for row, from_above in enumerate(upstream):
            if from_above is None:
                gradients.append(None)
                continue
            inputs = self.inputs(index, row)
            hidden = inputs[segment.inputs[0]].requires_grad_()
            with torch.enable_grad():
                result = run_segment(self.source.program, segment, inputs, None, block.running_with(leaves))
                result[segment.outputs[0]].backward(from_above)  # type: ignore[no-untyped-call]
            gradients.append(hidden.grad)
            seen()
            self.told(BACK)
        return gradients

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


def next_tokens(rows: np.ndarray) -> OfOutput:
    """Of the loss that language models are trained on: every position's next token in the text; the last has none."""

    def of_output(logits: torch.Tensor, row: int) -> torch.Tensor:
        upstream = logits.softmax(dim=-1)
        following = torch.from_numpy(rows[row, 1:].astype(np.int64))
        upstream[torch.arange(len(following)), following] -= 1
        upstream[-1] = 0
        return upstream

    return of_output


def drawn_tokens(seed: int) -> OfOutput:
    """Of the loss on tokens that the model itself draws, one for every position: its square is Fisher information."""
    generator = torch.Generator().manual_seed(seed)

    def of_output(logits: torch.Tensor, row: int) -> torch.Tensor:
        upstream = logits.softmax(dim=-1)
        drawn = torch.multinomial(upstream, 1, generator=generator)
        return upstream.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0))

    return of_output
