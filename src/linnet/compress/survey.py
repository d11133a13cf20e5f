# SPDX-License-Identifier: Apache-2.0
"""A pass of the calibration rows through the dense model, for what has to be known of all blocks before the first is
changed.

What is decided from it is written into the run's scratch directory before the walk begins: a resumed run does not look
again.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from linnet.compress.block import Block
from linnet.compress.gradients import RowGradients, next_tokens
from linnet.compress.job import Job
from linnet.compress.progress import Meter
from linnet.compress.pruning import Prune
from linnet.compress.running import RowRunner
from linnet.compress.shares import loud, outlier_share, uneven, with_shares
from linnet.compress.statistic import ColumnSquares, Statistic, StatisticKind
from linnet.compress.transform import ModelTransform
from linnet.compress.work import survey_work
from linnet.errors import CheckpointError
from linnet.formats.durable import os_errors, write_durable
from linnet.models.load import ModelSource
from linnet.program.traverse import declarations

_DIRECTORY, _DECIDED = "survey", "decided.json"

Values = tuple[str, ...]
"""Names of values that are looked at side by side."""
Asked = Mapping[Values, Mapping[str, StatisticKind]]
Found = Mapping[Values, Mapping[str, Statistic]]


@torch.no_grad()
def decide(job: Job, scratch: Path, meter: Meter) -> Job:
    """The job with everything decided that a pass over the dense model decides."""
    if not (job.steps.prunes or job.steps.shares):
        return job
    known = _read(scratch / _DECIDED)
    scores: list[list[list[float]]] = []
    done: list[ModelTransform] = []
    model = job.original
    for transform in job.steps.model_transforms:
        decided = None
        if isinstance(transform, Prune):
            scores.append(known[len(scores)] if known else _score(job, model, transform, scratch, meter))
            decided = transform.decided(model, [torch.tensor(each) for each in scores[-1]])
            model = decided.prepare(model)
        done.append(decided or transform)
    job = replace(job, steps=replace(job.steps, model_transforms=tuple(done)))
    if len(set(job.original.spec.layers)) > 1:  # else what was foreseen from the shapes is what has come about
        for transform in done[len(scores) :]:
            model = transform.prepare(model)
        job = replace(job, source=model)
    if job.steps.shares:
        scores.append(known[-1] if known else [_outliers(job, scratch, meter)])
        job = replace(job, steps=with_shares(job, scores[-1][0]))
    if not known:
        write_durable(scratch / _DECIDED, json.dumps(scores).encode())
    return job


def _outliers(job: Job, scratch: Path, meter: Meter) -> list[float]:
    """Of every block the share of outliers among the weights that are to be pruned by them; 0 where there are none."""
    model = replace(job.source, checkpoint=job.original.checkpoint)
    for transform in job.steps.model_transforms:
        model = transform.apply(model, job.schemes, job.recipe.seed)
    asked: dict[int, dict[Values, dict[str, StatisticKind]]] = {}
    for info in uneven(job):
        asked.setdefault(info.segment, {})[(info.tap,)] = {"squares": ColumnSquares}
    found = []
    for index, block, statistics in blocks(job, model, asked, scratch, meter):
        own = [info for info in uneven(job) if info.segment == index]
        found.append(outlier_share([loud(block.dense(info.tensor), statistics[(info.tap,)]) for info in own]))
    return found


def _score(job: Job, model: ModelSource, prune: Prune, scratch: Path, meter: Meter) -> list[list[float]]:
    """How much every unit of every group matters."""
    groups, importance = prune.groups(model), prune.importance
    if importance.salience:
        return _score_by_gradients(job, model, prune, scratch, meter)
    asked = {group.segment: {group.values: importance.statistics} for group in groups}
    found: list[list[float]] = []
    for index, block, statistics in blocks(job, model, asked if importance.statistics else {}, scratch, meter):
        for group in groups:
            if group.segment == index:
                own = importance.scores(group, block.dense, statistics.get(group.values, {}))
                found.append(own.tolist())
    return found


def _score_by_gradients(job: Job, model: ModelSource, prune: Prune, scratch: Path, meter: Meter) -> list[list[float]]:
    """The same by a pass forth and back: the gradients of each row's next-token loss, their scores added up."""
    assert job.rows is not None
    groups, rows, directory = prune.groups(model), job.rows, scratch / _DIRECTORY
    with os_errors(directory):
        directory.mkdir(exist_ok=True)
    segments = model.program.segments
    blocks_work = prune.passes * survey_work(job, True) * sum(segment.kind == "block" for segment in segments)

    def told(units: float) -> None:
        meter.advance("calibrate", "gradients of the loss", "survey", units / passes.work * blocks_work)

    passes = RowGradients(model, rows, len(rows), directory, told)
    passes.forth()
    upstream = passes.head(next_tokens(rows.token_ids))
    if all(each is None for each in upstream):
        raise CheckpointError("the model's output holds NaN or infinity on every one of the calibration rows")
    found = [torch.zeros(len(group.columns), dtype=torch.float64) for group in groups]
    for index in range(len(segments) - 2, 0, -1):
        own = [place for place, group in enumerate(groups) if group.segment == index]
        block = Block(segments[index], model)
        names = {part.tensor for place in own for part in groups[place].parts}
        leaves = {name: block.dense(name).clone().requires_grad_() for name in names}

        def add(own: Sequence[int] = own, leaves: Mapping[str, torch.Tensor] = leaves) -> None:
            salience = {name: leaf.detach() * leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
            for place in own:
                found[place] += prune.importance.scores(groups[place], salience.__getitem__, {})
            for leaf in leaves.values():
                leaf.grad = None

        upstream = passes.through(index, block, leaves, upstream, add)
        model.release()
    shutil.rmtree(directory, ignore_errors=True)
    return [each.tolist() for each in found]


def blocks(
    job: Job, model: ModelSource, asked: Mapping[int, Asked], scratch: Path, meter: Meter
) -> Iterator[tuple[int, Block, Found]]:
    """Every block of a dense model in turn, with what was ``asked`` about values in it; without questions no row
    runs."""
    program, directory = model.program, scratch / _DIRECTORY
    with os_errors(directory):
        directory.mkdir(exist_ok=True)
    runner = RowRunner(replace(job, source=model), directory)
    widths = {name: value.shape[1] for name, value in declarations(program).items() if len(value.shape) > 1}
    work = survey_work(job, bool(asked))
    for index, segment in enumerate(program.segments):
        block = Block(segment, model)
        if segment.kind == "embed" and asked:
            runner.embed(index, segment, block, _told(meter, segment.name, 0.0))
        if segment.kind != "block":
            continue
        statistics: dict[Values, dict[str, Statistic]] = {}
        for values, kinds in asked.get(index, {}).items():
            width = sum(int(widths[name]) for name in values)
            statistics[values] = {name: kind(width) for name, kind in kinds.items()}
        if asked:
            runner.survey(index, block.running(), statistics, _told(meter, segment.name, work))
            runner.keep_only(index + 1)
        yield index, block, statistics
        model.release()  # what the block took of the mapped files
        meter.advance("calibrate", segment.name, "survey", 0.0 if asked else work)
    runner.close()
    shutil.rmtree(directory, ignore_errors=True)


def _told(meter: Meter, layer: str, units: float) -> Callable[[float], None]:
    return lambda fraction: meter.advance("calibrate", layer, "survey", fraction * units)


def _read(path: Path) -> list[list[list[float]]]:
    """What an interrupted run decided; nothing if it did not come so far."""
    try:
        found: list[list[list[float]]] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return found
