# SPDX-License-Identifier: Apache-2.0
"""Work units of a run, for progress and ETA: floating point operations, roughly; never for decisions."""

from math import prod

from linnet.compress.job import Job
from linnet.models.inventory import LinearInfo

_COLUMN_WORK = 2e7
"""What one column of a calibrated fit costs beyond its arithmetic."""

_ELEMENT_WORK = 1000.0
"""What one element costs to be scaled, rounded and packed."""


def segment_work(job: Job) -> list[float]:
    """Units of every segment."""
    return [_segment(job, index) for index in range(len(job.source.program.segments))]


def tap_work(job: Job, index: int) -> float:
    """Running a segment up to its last tap and summing the statistics."""
    infos = [info for info in job.linears if info.segment == index]
    widths = {info.tap: info.shape[1] for info in infos if info.module in job.schemes}
    return _tokens(job) * sum(width * width for width in widths.values()) + 0.8 * run_work(job, index)


def run_work(job: Job, index: int) -> float:
    """Running a whole segment."""
    infos = [info for info in job.linears if info.segment == index and info.kind == "linear"]
    return 2.0 * _tokens(job) * sum(prod(info.shape) for info in infos)


def fit_work(job: Job, info: LinearInfo) -> float:
    """Fitting one linear."""
    rows, columns = info.shape
    if job.rows is None:
        return _ELEMENT_WORK * rows * columns
    return 4.0 * rows * columns**2 + columns**3 + _COLUMN_WORK * columns + 1.5 * _ELEMENT_WORK * rows * columns


def _tokens(job: Job) -> int:
    return 0 if job.rows is None else job.rows.token_ids.size


def _segment(job: Job, index: int) -> float:
    infos = [info for info in job.linears if info.segment == index and info.module in job.schemes]
    work = sum(fit_work(job, info) for info in infos)
    if job.rows is not None and infos:
        work += tap_work(job, index)
    if 0 < index < job.last_tapped_segment():
        work += run_work(job, index)
    return work
