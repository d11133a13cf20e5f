# SPDX-License-Identifier: Apache-2.0
"""Work of a run by kind, for progress and ETA; never for decisions.

Units are seconds of two AVX2 cores, so that kinds weigh alike from the start; the meter learns how fast each kind
really goes. Kinds: ``rows`` (calibration rows through a stage, and its statistics), ``fit``, ``write``.
"""

from math import prod

from linnet.compress.job import Job
from linnet.compress.stages import Stage, stages_of
from linnet.models.inventory import LinearInfo
from linnet.program.attributes import Attention
from linnet.program.traverse import declarations

_PRODUCT = 1 / 130e9
"""A floating point operation of a wide matrix product."""
_SCORE = 1 / 40e9
"""One of attention, softmax included."""
_ELEMENT = 1 / 1e9
"""An element of a value written: norms, gates, files."""
_COLUMN = 70e-6
"""A column of a calibrated fit, whatever its length."""
_ROUNDED = 30e-9
"""An element of a weight, to be scaled, rounded and packed."""
_BYTE = 1 / 400e6
"""A byte of the result: hashed, written, flushed."""
_COMMIT = 0.02

Work = dict[str, float]


def segment_work(job: Job) -> list[Work]:
    """Units of every segment by kind."""
    return [_segment(job, index) for index in range(len(job.source.program.segments))]


def total_work(job: Job) -> Work:
    """Units of the whole run by kind."""
    works = segment_work(job)
    return {kind: sum(work[kind] for work in works) for kind in works[0]}


def segment_stages(job: Job, index: int) -> tuple[Stage, ...]:
    """How the rows go through a segment; nothing if they don't."""
    segment, last = job.source.program.segments[index], job.last_tapped_segment()
    if segment.kind == "embed" or index > last:
        return ()
    infos = [info for info in job.linears if info.segment == index and info.module in job.schemes]
    return stages_of(job.source.program, segment, dict.fromkeys(info.tap for info in infos), index < last)


def stage_work(job: Job, index: int, stage: Stage) -> float:
    """Units of running a stage and of its statistics."""
    assert job.rows is not None
    program, (sequences, length) = job.source.program, job.rows.token_ids.shape
    shapes, values = {weight.name: weight.shape for weight in program.weights}, declarations(program)
    tokens = sequences * length
    seconds = 0.0
    for op in program.ops[stage.start : stage.stop]:
        if op.kind == "linear":
            seconds += 2.0 * tokens * prod(shapes[op.weights[0]]) * _PRODUCT
        elif isinstance(op.attributes, Attention):
            seconds += 2.0 * tokens * length * op.attributes.heads * op.attributes.head_size * _SCORE
        seconds += sum(tokens * _width(values[name].shape) * _ELEMENT for name in op.outputs)
    for tap in stage.taps:
        seconds += 1.5 * tokens * _width(values[tap].shape) ** 2 * _PRODUCT
    return seconds


def fit_work(job: Job, info: LinearInfo) -> float:
    """Units of fitting one linear."""
    rows, columns = info.shape
    if job.rows is None:
        return _ROUNDED * rows * columns
    products = 2.0 * rows * columns**2 + 2.0 * columns**3
    return _COLUMN * columns + _ROUNDED * rows * columns + products * _PRODUCT


def _segment(job: Job, index: int) -> Work:
    infos = [info for info in job.linears if info.segment == index and info.module in job.schemes]
    rows = 0.0 if job.rows is None else sum(stage_work(job, index, stage) for stage in segment_stages(job, index))
    written = sum(prod(info.shape) for info in job.linears if info.segment == index)
    return {"rows": rows, "fit": sum(fit_work(job, info) for info in infos), "write": _COMMIT + written * _BYTE}


def _width(shape: tuple[int | str, ...]) -> int:
    return prod(size for size in shape[1:] if isinstance(size, int))
