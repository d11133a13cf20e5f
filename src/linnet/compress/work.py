# SPDX-License-Identifier: Apache-2.0
"""Work of a run by kind, for progress and ETA; never for decisions.

Units are those of units.py. Kinds: ``rows`` (calibration rows through a stage, and its statistics), ``fit``, ``write``.
What an algorithm or a statistic takes, it says itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from linnet.compress.experts import share_of
from linnet.compress.job import Job
from linnet.compress.stages import Stage, stages_of, whole
from linnet.compress.statistic import StatisticKind
from linnet.compress.steps import ByModule
from linnet.compress.transform import BlockTransform
from linnet.compress.units import BYTE_S, COMMIT_S, ELEMENT_S, PRODUCT_S, SCORE_S
from linnet.program.attributes import Attention
from linnet.program.program import Program, Segment, Value
from linnet.program.traverse import declarations, known_at, tapped, writers

Work = dict[str, float]
Kinds = Mapping[str, Mapping[str, StatisticKind]]
"""Tap -> name -> what is summed there."""


def segment_work(job: Job) -> list[Work]:
    """Units of every segment by kind."""
    return [_segment(job, index) for index in range(len(job.source.program.segments))]


def total_work(job: Job) -> Work:
    """Units of the whole run by kind."""
    works = segment_work(job)
    surveys = [survey_work(job, prune.reads_rows) * prune.passes for prune in job.steps.prunes]
    if job.steps.shares:
        surveys.append(survey_work(job, True))
    blocks = sum(segment.kind == "block" for segment in job.original.program.segments)
    total = {kind: sum(work[kind] for work in works) for kind in works[0]}
    return total | {"survey": blocks * sum(surveys)}


def survey_work(job: Job, with_rows: bool) -> float:
    """Units of looking at one block of the dense model: its rows, or its weights alone."""
    program = job.original.program
    segment = next(segment for segment in program.segments if segment.kind == "block")
    shapes = {weight.name: weight.shape for weight in program.weights}
    if with_rows:
        return stage_work(job, whole(segment), {}, program)
    read = (name for op in program.ops[segment.start : segment.stop] for name in op.weights)
    return sum(prod(shapes[name]) for name in read) * ELEMENT_S


def segment_stages(job: Job, index: int) -> tuple[Stage, ...]:
    """How the rows go through a segment for its fits; nothing if they don't."""
    segment, last = job.source.program.segments[index], job.last_tapped_segment()
    if segment.kind == "embed" or index > last:
        return ()
    taps = [info.tap for info in job.compressed_linears(index) if job.steps.statistics_of(info.module)]
    cached = [name for cache, _ in job.steps.calibrated_caches(index) for name in (cache.key, cache.value)]
    if job.steps.fits_blocks:
        return _block_stages(job.source.program, segment, [*taps, *cached], index < last)
    stages = stages_of(job.source.program, segment, dict.fromkeys(taps), index < last)
    return _listening(job.source.program, stages, cached) or stages_of(
        job.source.program, segment, dict.fromkeys((*taps, *cached)), index < last
    )


def _listening(program: Program, stages: tuple[Stage, ...], names: list[str]) -> tuple[Stage, ...]:
    """The stages with these values among the taps of those that make them; nothing if one has no taps."""
    found, wrote = list(stages), writers(program)
    for name in names:
        place = next((at for at, stage in enumerate(found) if stage.start <= wrote[name] < stage.stop), None)
        if place is None or not found[place].taps:
            return ()
        found[place] = replace(found[place], taps=(*found[place].taps, name))
    return tuple(found)


def _block_stages(program: Program, segment: Segment, taps: list[str], to_the_end: bool) -> tuple[Stage, ...]:
    """Of a fit of the whole block: the rows through all of it as it was, and once it has its codes."""
    stop = 1 + max(map(known_at(program), taps), default=-1)
    observed = Stage(segment.start, max(stop, segment.start), segment.inputs, (), tuple(dict.fromkeys(taps)))
    return (observed, whole(segment)) if to_the_end else (observed,)


def stage_work(job: Job, stage: Stage, kinds: Kinds, program: Program | None = None) -> float:
    """Units of running a stage (of another ``program`` than the job's) and of its statistics (tap -> name -> kind)."""
    assert job.rows is not None
    program, (sequences, length) = program or job.source.program, job.rows.token_ids.shape
    shapes, values = {weight.name: weight.shape for weight in program.weights}, declarations(program)
    tokens = sequences * length
    seconds = 0.0
    for op in program.ops[stage.start : stage.stop]:
        if op.kind in ("linear", "experts"):
            each = int(values[op.outputs[0]].shape[1]) if op.kind == "experts" else 1
            seconds += 2.0 * tokens * each * prod(shapes[op.weights[0]]) * PRODUCT_S
        elif isinstance(op.attributes, Attention):
            seconds += 2.0 * tokens * length * op.attributes.heads * op.attributes.head_size * SCORE_S
        seconds += sum(tokens * _width(values[name]) * ELEMENT_S for name in op.outputs)
    for tap, of_tap in kinds.items():
        heard, width = tokens * share_of(program, tap), int(values[tapped(tap)].shape[-1])
        seconds += sum(heard * kind.work_of(width) for kind in of_tap.values())
    return seconds


def _segment(job: Job, index: int) -> Work:
    infos = job.compressed_linears(index)
    rows = 0.0 if job.rows is None else sum(stage_work(job, *passing) for passing in _passes(job, index))
    fits = sum(job.steps.fit_work(info.module, info.shape) for info in infos)
    for transform in job.steps.block_transforms:
        folds = job.folds(index, transform)
        fits += sum(transform.of(fold.readers[0].module).work(fold.shape) for fold in folds)
    written = sum(prod(info.shape) for info in job.linears if info.segment == index)
    return {"rows": rows, "fit": fits, "write": COMMIT_S + written * BYTE_S}


def _passes(job: Job, index: int) -> Iterator[tuple[Stage, Kinds]]:
    """Every run of the rows through a part of a segment, with what is summed meanwhile."""
    for transform in job.steps.block_transforms:
        if job.folds(index, transform):
            yield transform_pass(job, index, transform)
    for stage in segment_stages(job, index):
        yield stage, asked(job, index, stage)
    segment = job.source.program.segments[index]
    if job.steps.fits_blocks and segment.kind == "block":
        yield whole(segment), {}  # for what is aimed at


def asked(job: Job, index: int, stage: Stage) -> Kinds:
    """What the steps want to know about the values that a stage makes: inputs of linears, keys and values."""
    kinds: dict[str, dict[str, StatisticKind]] = {}
    for info in job.compressed_linears(index):
        wanted = job.steps.statistics_of(info.module)
        if wanted and info.tap in stage.taps:
            kinds.setdefault(info.tap, {}).update(wanted)
    for cache, static in job.steps.calibrated_caches(index):
        for tap in (cache.key, cache.value):
            if tap in stage.taps:
                kinds.setdefault(tap, {}).update(static.statistics)
    return kinds


def transform_pass(job: Job, index: int, transform: ByModule[BlockTransform]) -> tuple[Stage, Kinds]:
    """The rows through a block as far as a transform's last fold."""
    program, segment, folds = job.source.program, job.source.program.segments[index], job.folds(index, transform)
    kinds = {tap: transform.of(fold.readers[0].module).statistics for fold in folds for tap in fold.taps}
    stop = 1 + max(writers(program)[tap] for tap in kinds)
    return Stage(segment.start, stop, segment.inputs, (), tuple(kinds)), kinds


def _width(value: Value) -> int:
    return prod(size for size in value.shape[1:] if isinstance(size, int))
