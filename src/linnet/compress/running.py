# SPDX-License-Identifier: Apache-2.0
"""The calibration rows on their way through the model: embedded once, then through each block, stage by stage."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress.block import Block
from linnet.compress.job import Job
from linnet.compress.rows import CarriedRows, RowStore
from linnet.compress.stages import Stage, whole
from linnet.compress.statistic import Statistic
from linnet.program.program import Program, Segment
from linnet.program.traverse import declarations
from linnet.schemes.packed_weight import PackedWeight

Told = Callable[[float], None]
"""Called with the fraction of a pass that has just been done; may raise Interrupted."""


class RowRunner:
    """Rows between segments lie in durable files of ``directory``, those between two stages in passing ones."""

    def __init__(self, job: Job, directory: Path) -> None:
        self._job, self._program = job, job.source.program
        width = job.source.spec.hidden_size
        self._store, self._aims = RowStore(directory, width), RowStore(directory, width, "aims")
        self._carried = CarriedRows(directory)
        self._begun: int | None = None
        self.left_out: set[int] = set()
        """Calibration rows that are not counted any more: something in them was NaN or infinite."""
        self.aims_digest: str | None = None
        """SHA-256 of the dense model's rows for the next segment, where a fit follows them."""

    def resume(self, segment: int, digest: str | None, aims_digest: str | None, left_out: Iterable[int]) -> None:
        """Go on before ``segment``; digests of the rows it reads (None: it reads none) and of those it would read in
        the dense model. CheckpointError: damaged."""
        self.left_out |= set(left_out)
        self.aims_digest = aims_digest
        for store, expected in ((self._store, digest), (self._aims, aims_digest)):
            if expected is not None:
                store.verify(segment, expected)
        self.keep_only(segment if digest is not None else None)

    def keep_only(self, segment: int | None) -> None:
        """Delete every durable file but those ``segment`` reads."""
        self._store.keep_only(segment)
        self._aims.keep_only(segment)

    def close(self) -> None:
        """Delete what was carried between stages."""
        self._carried.close()

    def embed(
        self,
        index: int,
        segment: Segment,
        block: Block,
        told: Told,
    ) -> str:
        """Every calibration row embedded, for the next segment; returns the file's SHA-256. By the dense table too, if
        a fit follows the dense model."""
        if self._job.steps.follows_dense:
            self.aims_digest = self._embed(index, segment, block, block.dense_table(), self._aims, lambda _: None)
        return self._embed(index, segment, block, block.table(), self._store, told)

    def _embed(
        self,
        index: int,
        segment: Segment,
        block: Block,
        table: np.ndarray | PackedWeight,
        store: RowStore,
        told: Told,
    ) -> str:
        """Only the table's rows that occur are read, and ids renumbered to match."""
        assert self._job.rows is not None
        token_ids = self._job.rows.token_ids
        used, renumbered = np.unique(token_ids, return_inverse=True)
        renumbered = renumbered.reshape(token_ids.shape)
        name, others = self._program.ops[segment.start].weights[0], block.running()
        if isinstance(table, PackedWeight):
            rows_used = to_torch(table.take_rows([(int(row), int(row) + 1) for row in used]).dequantize())
        else:
            rows_used = to_torch(table[used])
        with store.write(index + 1) as rows:
            for start, stop in self._chunks():
                inputs = self._inputs(renumbered, range(start, stop))
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
        """Run a stage of segment ``index``, adding every tapped value to its statistics; carry its outputs over.

        Rows with NaN or infinity in them are left out, of this and of everything later.
        """

        def on_tap(start: int, name: str, x: torch.Tensor, tokens: torch.Tensor | None = None) -> None:
            heard = self._heard(start, x, tokens)
            for statistic in statistics[name].values():
                statistic.add(heard)

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

    def aim(self, index: int, weights: Mapping[str, torch.Tensor], follow: bool, told: Told) -> None:
        """Write what the rows behind segment ``index`` are to be: what ``weights``, the dense ones, make of the dense
        model's rows (``follow``) or of the rows that the segment reads."""
        stage = whole(self._program.segments[index])
        with self._aims.write(index + 1) as aims:
            for _, result in self._run(index, stage, weights, told, None, self._aims if follow else self._store):
                aims.append(result[stage.outputs[0]])
            self.aims_digest = aims.digest() if follow else None

    def aimed(self, index: int, row: int) -> torch.Tensor:
        """fp32 [tokens, width]: what calibration row ``row`` is to be behind segment ``index`` (see ``aim``)."""
        assert self._job.rows is not None
        length = self._job.rows.token_ids.shape[1]
        return self._aims.read(index + 1, row * length, (row + 1) * length)

    def survey(
        self,
        index: int,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[tuple[str, ...], Mapping[str, Statistic]],
        told: Told,
    ) -> None:
        """Run all of segment ``index`` and write the rows the next reads; ``statistics`` are of values side by side."""
        segment, came = self._program.segments[index], dict[str, torch.Tensor]()
        taps = dict.fromkeys(name for values in statistics for name in values)

        def on_tap(start: int, name: str, x: torch.Tensor, _: torch.Tensor | None = None) -> None:
            came[name] = x
            for values, own in statistics.items():
                if name in values and all(each in came for each in values):
                    heard = self._heard(start, torch.cat([came[each] for each in values], dim=1))
                    for statistic in own.values():
                        statistic.add(heard)

        with self._store.write(index + 1) as rows:
            for _, result in self._run(index, replace(whole(segment), taps=tuple(taps)), weights, told, on_tap):
                rows.append(result[segment.outputs[0]])
                came.clear()

    def _run(
        self,
        index: int,
        stage: Stage,
        weights: Mapping[str, torch.Tensor],
        told: Told,
        on_tap: Callable[..., None] | None,
        store: RowStore | None = None,
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(first row, the stage's outputs) of every chunk; ``store``: of what is read, if not the rows."""
        assert self._job.rows is not None
        segment = self._program.segments[index]
        part = replace(segment, start=stage.start, stop=stage.stop, outputs=stage.outputs)
        ids = self._job.rows.token_ids
        length, declared = ids.shape[1], declarations(self._program)
        for start, stop in self._chunks():
            inputs = self._inputs(ids, range(start, stop))
            if self._begun == index:
                carried = self._carried.read(start * length, stop * length)
                inputs |= {name: x.reshape(-1, int(declared[name].shape[-1])) for name, x in carried.items()}
            elif stage.inputs:
                inputs[stage.inputs[0]] = (store or self._store).read(index, start * length, stop * length)
            on_chunk = None if on_tap is None else partial(on_tap, start)
            result = run_segment(self._program, part, inputs, None, weights, stage.taps, on_chunk)
            yield start * length, {name: x.reshape((stop - start) * length, -1).float() for name, x in result.items()}
            told((stop - start) / len(ids))

    def first_outputs(
        self, index: int, program: Program, weights: Mapping[str, torch.Tensor | PackedWeight], tokens: int
    ) -> torch.Tensor:
        """What segment ``index`` of ``program`` makes of the first rows, about ``tokens`` of them."""
        assert self._job.rows is not None
        ids = self._job.rows.token_ids
        return self.outputs(index, program, weights, range(min(len(ids), max(1, tokens // ids.shape[1]))))

    def outputs(
        self,
        index: int,
        program: Program,
        weights: Mapping[str, torch.Tensor | PackedWeight],
        rows: Sequence[int],
    ) -> torch.Tensor:
        """What segment ``index`` of ``program`` makes of some calibration rows; gradients flow to ``weights``."""
        assert self._job.rows is not None
        ids, segment = self._job.rows.token_ids, program.segments[index]
        length = ids.shape[1]
        inputs = self._inputs(ids, rows)
        read = [self._store.read(index, row * length, (row + 1) * length) for row in rows]
        inputs[segment.inputs[0]] = torch.cat(read)
        return run_segment(program, segment, inputs, None, weights)[segment.outputs[0]]

    def _heard(self, start: int, x: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """fp32 [tokens, width] of rows from ``start`` on, or of some of their ``tokens`` alone, without those that are
        left out."""
        assert self._job.rows is not None
        if tokens is not None:
            return self._heard_of(start, x, tokens // self._job.rows.token_ids.shape[1])
        rows = x.view(-1, self._job.rows.token_ids.shape[1], x.shape[1])
        if not torch.isfinite(x.sum()):
            bad = ~torch.isfinite(rows).all(dim=2).all(dim=1)
            self.left_out |= {start + row for row in torch.nonzero(bad)[:, 0].tolist()}
        kept = [row for row in range(len(rows)) if start + row not in self.left_out]
        return x if len(kept) == len(rows) else rows[kept].reshape(-1, x.shape[1])

    def _heard_of(self, start: int, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The same of tokens that lie in ``rows``, counted from ``start``."""
        bad = ~torch.isfinite(x).all(dim=1)
        self.left_out |= {start + row for row in rows[bad].tolist()}
        if not self.left_out:
            return x
        return x[torch.tensor([start + row not in self.left_out for row in rows.tolist()], dtype=torch.bool)]

    def _inputs(self, ids: np.ndarray, places: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the program reads of calibration rows, whose tokens are ``ids``."""
        assert self._job.rows is not None
        return whole_sequence_inputs(torch.from_numpy(ids[list(places)]), self._job.rows.sequences(places))

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
