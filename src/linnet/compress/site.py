# SPDX-License-Identifier: Apache-2.0
"""A block at work: its tensors, the rows it reads, the linears to compress, and the records of what was done."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from linnet.compress.algorithm import Fit, Fitted, ratio
from linnet.compress.algorithms.rtn import Rtn, RtnOptions
from linnet.compress.block import Block
from linnet.compress.experts import LEAST_TOKENS, is_expert, warn_of_unheard
from linnet.compress.folds import Fold
from linnet.compress.job import Job
from linnet.compress.key_folds import KeyFold
from linnet.compress.low_rank import LowRankFit
from linnet.compress.progress import Meter
from linnet.compress.running import RowRunner
from linnet.compress.sparsifier import Sparsifier
from linnet.compress.stages import Stage, whole
from linnet.compress.statistic import Hessian, Statistic, StatisticKind
from linnet.compress.work import asked, segment_stages, stage_work
from linnet.errors import CheckpointError, ConfigError
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource
from linnet.program.prescribed import INPUT_SCALE


class Site:
    """Segment ``index`` of the walk. ``records``: module -> what goes into the manifest about it."""

    def __init__(self, job: Job, index: int, source: ModelSource, rows: RowRunner, meter: Meter) -> None:
        self.job, self.index, self.segment = job, index, job.source.program.segments[index]
        self.source = source
        self.block = Block(self.segment, source, job.rounded_last)
        self.linears = job.compressed_linears(index)
        self.records: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, Mapping[str, Statistic]] = {}
        self._rows, self._meter = rows, meter

    def observe(self, stage: Stage, kinds: Mapping[str, Mapping[str, StatisticKind]]) -> "Statistics":
        """Run the rows through a stage; ``kinds``: tap -> name -> what to sum. Its outputs wait for the next stage."""
        statistics = {
            tap: {name: kind(self.job.tap_width(tap)) for name, kind in of_tap.items()} for tap, of_tap in kinds.items()
        }
        units = stage_work(self.job, stage, kinds)
        self._rows.observe(
            self.index, stage, self.block.running(), statistics, lambda fraction: self._told(fraction * units)
        )
        self._check_heard(kinds)
        warn_of_unheard(self.segment.name, self.linears, statistics)
        self._heard |= statistics
        return statistics

    def observe_once(self) -> "Statistics":
        """Run the rows through the block as it is, for the statistics that its linears' fits declare."""
        stage = next((stage for stage in segment_stages(self.job, self.index) if stage.taps), None)
        return {} if stage is None else self.observe(stage, asked(self.job, self.index, stage))

    def advance(self, stage: Stage) -> str:
        """Run the rows through the last stage, into what the next block reads; returns their digest."""
        units = stage_work(self.job, stage, {})
        return self._rows.advance(
            self.index, stage, self.block.running(), lambda fraction: self._told(fraction * units)
        )

    def dense(self, info: LinearInfo) -> torch.Tensor:
        """A linear's fp32 weight as the steps before have left it, not to be written to.

        CheckpointError if it holds NaN or infinity: the source does not (sound.py), but what a step made of a huge
        weight may.
        """
        weight = self.block.dense(info.tensor)
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"{info.module} holds NaN or infinity after the steps before: a weight of the source is so large that "
                "sums of it leave fp32"
            )
        return weight

    def sparsify_all(self, statistics: "Statistics") -> None:
        """Prune every linear of the block that the recipe prunes."""
        for info in self.linears:
            sparsifier = self.job.steps.sparsifier_of(info.module)
            if sparsifier is not None:
                self.sparsify(info, sparsifier, statistics.get(info.tap, {}))

    def sparsify(self, info: LinearInfo, sparsifier: Sparsifier, statistics: Mapping[str, Statistic]) -> None:
        """Prune one linear; the record says what that alone cost."""
        before, step = self.dense(info), self.job.recipe.sparsify
        assert step is not None
        values, kept = sparsifier.sparsify(info.module, before, statistics, self._tick(info, sparsifier.work))
        self.block.mask(info.module, values, kept)
        difference = self.block.dense(info.tensor) - before
        errors = [float(each.square().sum(dtype=torch.float64)) for each in (difference, before)]
        own: dict[str, Any] = {"algorithm": step.algorithm, "weight_error": ratio(errors[0], errors[1])}
        hessian = statistics.get("hessian")
        if isinstance(hessian, Hessian):
            own["output_error"] = ratio(hessian.quadratic(difference), hessian.quadratic(before))
        zeros = {"pattern": sparsifier.pattern.name, "pruned": 1 - float(kept.sum()) / kept.numel()}
        record = self.records.setdefault(info.module, {})
        if info.module in self.job.schemes:
            record["sparsify"] = own | zeros
        else:
            record.update(own | {"shape": list(info.shape)} | zeros)

    def fit(self, info: LinearInfo, algorithm: Fit, statistics: Mapping[str, Statistic]) -> None:
        """Give one linear its compressed weight."""
        scheme, step, tick = self.job.schemes[info.module], self.job.recipe.quantise, self._tick(info, algorithm.work)
        weight, kept = self.dense(info), self.block.kept.get(info.module)
        assert step is not None
        name, notes = step.algorithm, {}
        if is_expert(info) and statistics:
            heard = min(statistic.rows for statistic in statistics.values())
            notes["tokens"] = heard
            if heard < LEAST_TOKENS:
                name, algorithm, statistics = "rtn", Rtn(RtnOptions()), {}
        fitted = algorithm.fit(info.module, weight, scheme, statistics, tick, kept)
        self.pack(info.module, replace(fitted, notes={**fitted.notes, **notes}), name, info.shape)

    def factorise(self, info: LinearInfo, algorithm: LowRankFit, statistics: Mapping[str, Statistic]) -> None:
        """Put two narrow matrices in one linear's place."""
        step = self.job.recipe.factorise
        assert step is not None
        own = self._low_rank(info, algorithm, self.dense(info), statistics, replaces=True)
        self.records.setdefault(info.module, {}).update({"algorithm": step.algorithm, "shape": list(info.shape)} | own)

    def repair(
        self, info: LinearInfo, algorithm: LowRankFit, before: torch.Tensor, statistics: Mapping[str, Statistic]
    ) -> None:
        """Put a term beside what one linear has become; ``before``: fp32, what it was. The record says what is left of
        the error; that of the steps before stays beside it."""
        step = self.job.recipe.repair
        assert step is not None
        own = self._low_rank(info, algorithm, before, statistics, replaces=False)
        self.records[info.module]["repair"] = {"algorithm": step.algorithm} | own

    def _low_rank(
        self,
        info: LinearInfo,
        algorithm: LowRankFit,
        before: torch.Tensor,
        statistics: Mapping[str, Statistic],
        replaces: bool,
    ) -> dict[str, Any]:
        lost = before if replaces else before - self.block.whole(info.module)
        low_rank = algorithm.term(info.module, lost, algorithm.rank(info.module, info.shape), statistics)
        self.block.add_low_rank(info.module, low_rank, replaces)
        left = lost - torch.from_numpy(low_rank.product())
        self._tick(info, algorithm.work)(1.0)
        sizes = [float(each.square().sum(dtype=torch.float64)) for each in (left, before)]
        own = {"rank": low_rank.rank, "weight_error": ratio(*sizes)}
        hessian = statistics.get("hessian")
        if isinstance(hessian, Hessian):
            own["output_error"] = ratio(hessian.quadratic(left), hessian.quadratic(before))
        return own

    def _tick(self, info: LinearInfo, work: Callable[[tuple[int, int]], float]) -> Callable[[float], None]:
        units = work(info.shape)
        return lambda fraction: self._meter.advance("compress", info.module, "fit", fraction * units)

    @property
    def heard(self) -> list[int]:
        """The calibration rows that count; none for a data-free job."""
        rows = self.job.rows
        return [] if rows is None else [row for row in range(len(rows.token_ids)) if row not in self._rows.left_out]

    def outputs(self, rows: Sequence[int], weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """fp32 [tokens, width]: what the segment makes of calibration rows with these weights (Block.running_with)."""
        return self._rows.outputs(self.index, self.source.program, weights, rows)

    def aim(self, follow: bool) -> None:
        """Find what the segment, dense, makes of the rows: of the dense model's (``follow``) or of its own."""
        units = stage_work(self.job, whole(self.segment), {})
        self._rows.aim(self.index, self.block.running(), follow, lambda fraction: self._told(fraction * units))

    def aimed(self, row: int) -> torch.Tensor:
        """fp32 [tokens, width]: what ``aim`` found of a calibration row."""
        return self._rows.aimed(self.index, row)

    def learned(self, units: float) -> None:
        """Tell that so much of the block's fit is done."""
        self._meter.advance("compress", self.segment.name, "fit", units)

    def pack(self, module: str, fitted: Fitted, algorithm: str, shape: tuple[int, int]) -> None:
        """Put a fit's result into the block and on record, with the scale of its activations if that is stored."""
        packed, calibrator = fitted.packed, self.job.steps.calibrator_of(module)
        scheme = packed.scheme.input
        if calibrator is not None and scheme is not None:
            tap = next(info.tap for info in self.linears if info.module == module)
            scale = np.array([calibrator.scale(module, scheme, self._heard[tap])], np.float32)
            packed = replace(packed, arrays={**packed.arrays, INPUT_SCALE: scale})
            fitted = replace(fitted, notes={**fitted.notes, INPUT_SCALE: float(scale[0])})
        self.block.pack(module, packed)
        if module == self.source.spec.head and (fitted.outliers is not None or fitted.sparse is not None):
            raise ConfigError(
                f"{module}: a head has no place for outliers; give it a rule with a scheme that rounds weights "
                "alone (W8A16), or dense"
            )
        if fitted.outliers is not None:
            self.block.set_outliers(module, fitted.outliers)
        if fitted.sparse is not None:
            self.block.set_sparse(module, fitted.sparse)
        record: dict[str, Any] = {"algorithm": algorithm, "shape": list(shape), "weight_error": fitted.weight_error}
        if fitted.output_error is not None:
            record["output_error"] = fitted.output_error
        self.records.setdefault(module, {}).update(record | dict(fitted.notes))

    def cache_scales(self) -> dict[str, np.ndarray]:
        """Tensors with the scales of the segment's keys and values, as they were found."""
        found: dict[str, np.ndarray] = {}
        for cache, static in self.job.steps.calibrated_caches(self.index):
            assert self.job.kv is not None
            found |= cache.scales(self.job.kv, static, self._heard)
        return found

    def smoothed(self, fold: Fold | KeyFold, algorithm: str, notes: Mapping[str, Any], units: float) -> None:
        """Put what a transform did at a fold on record, with every linear it concerns."""
        for info in fold.readers:
            if info.module in self.job.schemes:
                self.records.setdefault(info.module, {})[algorithm] = dict(notes)
        self._meter.advance("compress", fold.readers[0].module, "fit", units)

    def embedded(self, fraction: float) -> None:
        """Tell that so much of the rows has been embedded."""
        self._meter.advance("calibrate", self.segment.name)

    def check(self, layer: str) -> None:
        """Interrupted if asked to stop."""
        self._meter.check(layer)

    def _check_heard(self, taps: Iterable[str]) -> None:
        """CheckpointError, naming who reads the value, once no calibration row is left."""
        assert self.job.rows is not None
        if len(self._rows.left_out) == len(self.job.rows.token_ids):
            readers = (info.module for tap in taps for info in self.linears if info.tap == tap)
            reader = next(readers, f"the KV cache of {self.segment.name}")
            raise CheckpointError(
                f"the activations that {reader} reads hold NaN or infinity on every one of the calibration rows"
            )

    def _told(self, units: float) -> None:
        self._meter.advance("compress", self.segment.name, "rows", units)


Statistics = Mapping[str, Mapping[str, Statistic]]
"""Tap -> name -> sum."""
