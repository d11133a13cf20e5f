# SPDX-License-Identifier: Apache-2.0
"""The walk over the segments: embeddings once, then block by block; one block of weights in memory at a time.

Order of side effects per segment: rows for the next segment written and durable; tensors added; one commit (the
resume point) with the segment's record; older rows deleted. A killed run repeats at most one segment.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress.algorithm import Fit
from linnet.compress.algorithms.rtn import Rtn, RtnOptions
from linnet.compress.job import Job
from linnet.compress.progress import Meter
from linnet.compress.rows import RowStore
from linnet.compress.statistic import Statistic
from linnet.compress.work import fit_work, run_work, segment_work, tap_work
from linnet.errors import CheckpointError
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.formats.durable import START_AFRESH
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource
from linnet.program.program import Segment, WeightRef
from linnet.program.traverse import writers
from linnet.schemes.packed_weight import PackedWeight


class Walk:
    """One run over a Job's segments, writing into a CheckpointWriter that may already hold some of them."""

    def __init__(self, job: Job, writer: CheckpointWriter) -> None:
        self._job, self._writer = job, writer
        self._program = job.source.program
        self._store = RowStore(writer.scratch, job.source.spec.hidden_size)
        self._last_tapped = job.last_tapped_segment()
        self._written: set[str] = set(writer.finished)
        self._weights = {weight.name: weight for weight in self._program.weights}

    @torch.no_grad()
    def run(self, meter: Meter) -> None:
        """Do every segment that is not yet in the writer."""
        work, done = segment_work(self._job), len(self._writer.notes)
        if done:
            self._resume(done)
        for index, segment in enumerate(self._program.segments):
            if index < done:
                meter.skip(work[index])
                continue
            with self._opened() as source:
                digest, layers = self._segment(index, segment, source, meter)
            self._writer.commit({"segment": segment.name, "rows_sha256": digest, "layers": layers})
            self._store.keep_only(index + 1 if digest is not None else None)

    def layers(self) -> dict[str, dict[str, Any]]:
        """The record of every compressed module, in the order of the walk."""
        return {module: record for note in self._writer.notes for module, record in note["layers"].items()}

    @contextmanager
    def _opened(self) -> Iterator[ModelSource]:
        """The source, mapped anew, so that the pages a segment touched are given back when it ends."""
        with Checkpoint.open(self._job.directory, verify=False) as checkpoint:
            yield replace(self._job.source, checkpoint=checkpoint)

    def _resume(self, done: int) -> None:
        note = self._writer.notes[-1]
        if note["segment"] != self._program.segments[done - 1].name:
            raise CheckpointError(f"the resume point is of segment {note['segment']}, not of the walk; {START_AFRESH}")
        if note["rows_sha256"] is not None:
            self._store.verify(done, note["rows_sha256"])
        self._store.keep_only(done if note["rows_sha256"] is not None else None)

    def _segment(
        self, index: int, segment: Segment, source: ModelSource, meter: Meter
    ) -> tuple[str | None, dict[str, dict[str, Any]]]:
        """Fit, advance the rows, add the tensors; returns the rows' digest and the records of the modules."""
        infos = [info for info in self._job.linears if info.segment == index and info.module in self._job.schemes]
        layers: dict[str, dict[str, Any]] = {}
        packed: dict[str, PackedWeight] = {}
        digest = None
        if segment.kind == "embed":
            if self._job.embedding in self._job.schemes:
                self._fit_embedding(source, packed, layers, meter)
            if index < self._last_tapped:
                digest = self._write_embedded(index, segment, source, packed.get(self._job.embedding), meter)
        else:
            advance = index < self._last_tapped
            overrides = self._dense_overrides(segment, source, infos) if advance or self._needs_rows(infos) else {}
            statistics = self._collect(index, segment, infos, overrides, meter)
            for position, info in enumerate(infos):
                self._fit(info, source, statistics.get(info.tap, {}), packed, layers, meter)
                self._replace(info, packed[info.module], overrides)
                if all(later.tap != info.tap for later in infos[position + 1 :]):
                    statistics.pop(info.tap, None)
            if advance:
                digest = self._advance(index, segment, overrides, meter)
        self._add_tensors(index, segment, source, packed)
        return digest, layers

    def _needs_rows(self, infos: list[LinearInfo]) -> bool:
        return self._job.rows is not None and bool(infos)

    # -- running ---------------------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of calibration rows."""
        assert self._job.rows is not None
        count, step = len(self._job.rows.token_ids), self._job.sequences_per_chunk
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def _inputs(self, index: int, segment: Segment, start: int, stop: int) -> dict[str, torch.Tensor]:
        assert self._job.rows is not None
        ids = torch.from_numpy(self._job.rows.token_ids[start:stop].copy())
        inputs = whole_sequence_inputs(ids)
        if segment.inputs:
            length = ids.shape[1]
            inputs[segment.inputs[0]] = self._store.read(index, start * length, stop * length)
        return inputs

    def _collect(
        self,
        index: int,
        segment: Segment,
        infos: list[LinearInfo],
        overrides: dict[str, torch.Tensor],
        meter: Meter,
    ) -> dict[str, dict[str, Statistic]]:
        """One set of statistics per tap, from running the dense segment up to its last tap."""
        if not self._needs_rows(infos):
            return {}
        kinds = self._job.algorithm.statistics
        widths = {info.tap: info.shape[1] for info in infos}
        collected = {tap: {name: make(width) for name, make in kinds.items()} for tap, width in widths.items()}
        wrote = writers(self._program)
        stop_op = max((wrote[tap] + 1 for tap in collected if tap in wrote), default=segment.start)
        until_last_tap = replace(segment, stop=max(stop_op, segment.start), outputs=())

        def on_tap(name: str, x: torch.Tensor) -> None:
            for statistic in collected[name].values():
                statistic.add(x)

        units = tap_work(self._job, index) / sum(1 for _ in self._chunks())
        for start, stop in self._chunks():
            inputs = self._inputs(index, segment, start, stop)
            run_segment(self._program, until_last_tap, inputs, None, overrides, tuple(collected), on_tap)
            meter.advance("compress", segment.name, units)
        return collected

    def _advance(self, index: int, segment: Segment, overrides: dict[str, torch.Tensor], meter: Meter) -> str:
        """Rows through the compressed segment, to the next one; returns their SHA-256."""
        units = run_work(self._job, index) / sum(1 for _ in self._chunks())
        with self._store.write(index + 1) as rows:
            for start, stop in self._chunks():
                result = run_segment(self._program, segment, self._inputs(index, segment, start, stop), None, overrides)
                rows.append(result[segment.outputs[0]])
                meter.advance("compress", segment.name, units)
            return rows.digest()

    def _write_embedded(
        self, index: int, segment: Segment, source: ModelSource, packed: PackedWeight | None, meter: Meter
    ) -> str:
        """Embed every calibration row. Only the table's rows that occur are read, and ids renumbered to match."""
        assert self._job.rows is not None
        token_ids = self._job.rows.token_ids
        used, renumbered = np.unique(token_ids, return_inverse=True)
        renumbered = renumbered.reshape(token_ids.shape)
        overrides = self._dense_overrides(segment, source, [])
        name = self._program.ops[segment.start].weights[0]
        if packed is not None:
            overrides[name] = to_torch(packed.take_rows([(int(row), int(row) + 1) for row in used]).dequantize())
        else:
            table = source.weight(self._weights[name].ref)
            assert isinstance(table, np.ndarray)
            overrides[name] = to_torch(table[used])
        with self._store.write(index + 1) as rows:
            for start, stop in self._chunks():
                inputs = whole_sequence_inputs(torch.from_numpy(renumbered[start:stop].copy()))
                result = run_segment(self._program, segment, inputs, None, overrides)
                rows.append(result[segment.outputs[0]])
                meter.advance("calibrate", segment.name)
            return rows.digest()

    def _dense_overrides(
        self, segment: Segment, source: ModelSource, infos: list[LinearInfo]
    ) -> dict[str, torch.Tensor]:
        """Every weight of the segment in fp32, except tables and heads, which are handled apart."""
        overrides = {}
        for op in self._program.ops[segment.start : segment.stop]:
            for name in op.weights:
                if op.kind in ("embed", "logits") and name == op.weights[0]:
                    continue
                overrides[name] = to_torch(_dense(source, self._weights[name].ref))
        return overrides

    # -- fitting ---------------------------------------------------------------------------------------------------

    def _fit(
        self,
        info: LinearInfo,
        source: ModelSource,
        statistics: Mapping[str, Statistic],
        packed: dict[str, PackedWeight],
        layers: dict[str, dict[str, Any]],
        meter: Meter,
    ) -> None:
        weight = to_torch(_dense(source, WeightRef(info.tensor)))
        scheme, units = self._job.schemes[info.module], fit_work(self._job, info)

        def tick(fraction: float) -> None:
            meter.advance("compress", info.module, fraction * units)

        fit = self._job.algorithm.fit(info.module, weight, scheme, statistics, tick)
        packed[info.module] = fit.packed
        layers[info.module] = _record(fit, self._job.recipe.algorithm, info.shape)

    def _fit_embedding(
        self,
        source: ModelSource,
        packed: dict[str, PackedWeight],
        layers: dict[str, dict[str, Any]],
        meter: Meter,
    ) -> None:
        """An embedding has no input rows: it is rounded to nearest whatever the algorithm."""
        module = self._job.embedding
        weight = to_torch(_dense(source, WeightRef(f"{module}.weight")))
        fit = Rtn(RtnOptions()).fit(module, weight, self._job.schemes[module], {}, lambda _: meter.check(module))
        packed[module] = fit.packed
        layers[module] = _record(fit, "rtn", (weight.shape[0], weight.shape[1]))

    def _replace(self, info: LinearInfo, packed: PackedWeight, overrides: dict[str, torch.Tensor]) -> None:
        """Put the compressed weight where the dense one was, in every op that reads a part of it."""
        named = [
            weight
            for weight in self._program.weights
            if weight.ref.checkpoint_name == info.tensor and weight.name in overrides
        ]
        for weight in named:
            part = packed if weight.ref.rows is None else packed.take_rows(weight.ref.rows)
            overrides[weight.name] = to_torch(part.dequantize())

    # -- writing ---------------------------------------------------------------------------------------------------

    def _add_tensors(
        self, index: int, segment: Segment, source: ModelSource, packed: Mapping[str, PackedWeight]
    ) -> None:
        """The segment's tensors; with the last one also those that no op reads, so that nothing is lost."""
        for module, weight in packed.items():
            self._writer.add_packed(module, weight)
            self._written.add(f"{module}.weight")
        packed_tensors = {f"{module}.weight" for module in self._job.schemes}
        for op in self._program.ops[segment.start : segment.stop]:
            for name in op.weights:
                self._add_dense(self._weights[name].ref.checkpoint_name, source, packed_tensors)
        if index == len(self._program.segments) - 1:
            for name in source.checkpoint.names():
                if self._job.is_written(name):
                    self._add_dense(name, source, packed_tensors)

    def _add_dense(self, name: str, source: ModelSource, packed_tensors: set[str]) -> None:
        if name in self._written or name in packed_tensors:
            return
        self._writer.add(name, source.checkpoint.tensor(name))
        self._written.add(name)


def _dense(source: ModelSource, ref: WeightRef) -> np.ndarray:
    stored = source.weight(ref)
    assert isinstance(stored, np.ndarray)
    return stored


def _record(fit: Fit, algorithm: str, shape: tuple[int, int]) -> dict[str, Any]:
    record: dict[str, Any] = {"algorithm": algorithm, "shape": list(shape), "weight_error": fit.weight_error}
    if fit.output_error is not None:
        record["output_error"] = fit.output_error
    return record | dict(fit.notes)
