# SPDX-License-Identifier: Apache-2.0
"""The calibration rows on their way through the model: embedded once, then through each block, stage by stage."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress.job import Job
from linnet.compress.rows import CarriedRows, RowStore
from linnet.compress.stages import Stage
from linnet.compress.statistic import Statistic
from linnet.program.program import Segment
from linnet.schemes.packed_weight import PackedWeight

Told = Callable[[float], None]
"""Called with the fraction of a pass that has just been done; may raise Interrupted."""


class RowRunner:
    """Rows between segments lie in durable files of ``directory``, those between two stages in passing ones."""

    def __init__(self, job: Job, directory: Path) -> None:
        self._job, self._program = job, job.source.program
        self._store = RowStore(directory, job.source.spec.hidden_size)
        self._carried = CarriedRows(directory)
        self._begun: int | None = None

    def resume(self, segment: int, digest: str | None) -> None:
        """Go on before ``segment``; ``digest`` of the rows it reads (None: it reads none). CheckpointError: damaged."""
        if digest is not None:
            self._store.verify(segment, digest)
        self.keep_only(segment if digest is not None else None)

    def keep_only(self, segment: int | None) -> None:
        """Delete every durable file but the one ``segment`` reads."""
        self._store.keep_only(segment)

    def close(self) -> None:
        """Delete what was carried between stages."""
        self._carried.close()

    def embed(
        self,
        index: int,
        segment: Segment,
        table: np.ndarray | PackedWeight,
        others: dict[str, torch.Tensor],
        told: Told,
    ) -> str:
        """Every calibration row embedded, for the next segment; returns the file's SHA-256.

        Only the table's rows that occur are read, and ids renumbered to match. ``others``: the segment's other weights.
        """
        assert self._job.rows is not None
        token_ids = self._job.rows.token_ids
        used, renumbered = np.unique(token_ids, return_inverse=True)
        renumbered = renumbered.reshape(token_ids.shape)
        name = self._program.ops[segment.start].weights[0]
        if isinstance(table, PackedWeight):
            rows_used = to_torch(table.take_rows([(int(row), int(row) + 1) for row in used]).dequantize())
        else:
            rows_used = to_torch(table[used])
        with self._store.write(index + 1) as rows:
            for start, stop in self._chunks():
                inputs = whole_sequence_inputs(torch.from_numpy(renumbered[start:stop].copy()))
                result = run_segment(self._program, segment, inputs, None, others | {name: rows_used})
                rows.append(result[segment.outputs[0]])
                told((stop - start) / len(token_ids))
            return rows.digest()

    def observe(
        self,
        index: int,
        stage: Stage,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Mapping[str, Statistic]],
        told: Told,
    ) -> None:
        """Run a stage of segment ``index``, adding every tapped value to its statistics; carry its outputs over."""

        def on_tap(name: str, x: torch.Tensor) -> None:
            for statistic in statistics[name].values():
                statistic.add(x)

        for start, result in self._run(index, stage, weights, told, on_tap):
            if stage.outputs:
                self._carried.write(start, result, self._tokens)
        if stage.outputs:
            self._carried.turn()
            self._begun = index

    def advance(self, index: int, stage: Stage, weights: Mapping[str, torch.Tensor], told: Told) -> str:
        """Run the last stage of segment ``index`` and write the rows the next reads; returns their SHA-256."""
        with self._store.write(index + 1) as rows:
            for _, result in self._run(index, stage, weights, told, None):
                rows.append(result[stage.outputs[0]])
            return rows.digest()

    def _run(
        self,
        index: int,
        stage: Stage,
        weights: Mapping[str, torch.Tensor],
        told: Told,
        on_tap: Callable[[str, torch.Tensor], None] | None,
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(first row, the stage's outputs) of every chunk."""
        assert self._job.rows is not None
        whole = self._program.segments[index]
        part = replace(whole, start=stage.start, stop=stage.stop, outputs=stage.outputs)
        ids = self._job.rows.token_ids
        length = ids.shape[1]
        for start, stop in self._chunks():
            inputs = whole_sequence_inputs(torch.from_numpy(ids[start:stop].copy()))
            if self._begun == index:
                inputs |= self._carried.read(start * length, stop * length)
            elif stage.inputs:
                inputs[stage.inputs[0]] = self._store.read(index, start * length, stop * length)
            result = run_segment(self._program, part, inputs, None, weights, stage.taps, on_tap)
            yield start * length, result
            told((stop - start) / len(ids))

    @property
    def _tokens(self) -> int:
        assert self._job.rows is not None
        return int(self._job.rows.token_ids.size)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of calibration rows."""
        assert self._job.rows is not None
        count, step = len(self._job.rows.token_ids), self._job.sequences_per_chunk
        for start in range(0, count, step):
            yield start, min(start + step, count)
