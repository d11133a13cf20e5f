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

from linnet.backends.reference.weights import to_torch
from linnet.compress.algorithm import Fit
from linnet.compress.algorithms.rtn import Rtn, RtnOptions
from linnet.compress.job import Job
from linnet.compress.progress import Meter
from linnet.compress.running import RowRunner
from linnet.compress.statistic import Statistic
from linnet.compress.work import fit_work, segment_stages, segment_work, stage_work
from linnet.errors import CheckpointError
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.formats.durable import START_AFRESH
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource
from linnet.program.program import Segment, WeightRef
from linnet.schemes.packed_weight import PackedWeight


class Walk:
    """One run over a Job's segments, writing into a CheckpointWriter that may already hold some of them."""

    def __init__(self, job: Job, writer: CheckpointWriter) -> None:
        self._job, self._writer = job, writer
        self._program = job.source.program
        self._rows = RowRunner(job, writer.scratch)
        self._last_tapped = job.last_tapped_segment()
        self._written: set[str] = set(writer.finished)
        self._weights = {weight.name: weight for weight in self._program.weights}

    @torch.no_grad()
    def run(self, meter: Meter) -> None:
        """Do every segment that is not yet in the writer."""
        work, done = segment_work(self._job), len(self._writer.notes)
        if done:
            self._resume(done)
        try:
            for index, segment in enumerate(self._program.segments):
                if index < done:
                    meter.skip(work[index])
                    continue
                with self._opened() as source:
                    digest, layers = self._segment(index, segment, source, meter)
                self._writer.commit({"segment": segment.name, "rows_sha256": digest, "layers": layers})
                self._rows.keep_only(index + 1 if digest is not None else None)
                meter.advance("compress", segment.name, "write", work[index].get("write", 0.0))
        finally:
            self._rows.close()

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
        self._rows.resume(done, note["rows_sha256"])

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
                digest = self._embed(index, segment, source, packed.get(self._job.embedding), meter)
        elif index <= self._last_tapped:
            digest = self._block(index, segment, source, infos, packed, layers, meter)
        else:
            for info in infos:
                self._fit(info, source, {}, packed, layers, meter)
        self._add_tensors(index, segment, source, packed)
        return digest, layers

    # -- running ---------------------------------------------------------------------------------------------------

    def _embed(
        self, index: int, segment: Segment, source: ModelSource, packed: PackedWeight | None, meter: Meter
    ) -> str:
        name = self._program.ops[segment.start].weights[0]
        table = packed if packed is not None else _dense(source, self._weights[name].ref)
        others = self._dense_overrides(segment, source)
        return self._rows.embed(index, segment, table, others, lambda _: meter.advance("calibrate", segment.name))

    def _block(
        self,
        index: int,
        segment: Segment,
        source: ModelSource,
        infos: list[LinearInfo],
        packed: dict[str, PackedWeight],
        layers: dict[str, dict[str, Any]],
        meter: Meter,
    ) -> str | None:
        """Stage by stage: rows up to a tap, fits of what reads it, on with the compressed weights in their place.

        Returns the digest of the rows for the next segment, None for the last one whose rows anybody reads.
        """
        kinds, advance = self._job.algorithm.statistics, index < self._last_tapped
        overrides = self._dense_overrides(segment, source)
        for stage in segment_stages(self._job, index):
            units = stage_work(self._job, index, stage)

            def told(fraction: float, units: float = units) -> None:
                meter.advance("compress", segment.name, "rows", fraction * units)

            readers = [info for info in infos if info.tap in stage.taps]
            statistics = {
                info.tap: {name: make(info.shape[1]) for name, make in kinds.items()}
                for info in {info.tap: info for info in readers}.values()
            }
            if advance and stage.stop == segment.stop and not readers:
                return self._rows.advance(index, stage, overrides, told)
            self._rows.observe(index, stage, overrides, statistics, told)
            for info in readers:
                self._fit(info, source, statistics[info.tap], packed, layers, meter)
                self._replace(info, packed[info.module], overrides)
        return None

    def _dense_overrides(self, segment: Segment, source: ModelSource) -> dict[str, torch.Tensor]:
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
            meter.advance("compress", info.module, "fit", fraction * units)

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
