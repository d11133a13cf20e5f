# SPDX-License-Identifier: Apache-2.0
"""Before a long run: one real block, on one chunk of rows, says what the whole will take.

The block is smoothed, pruned and fitted as the walk does it, or as much of that as fits into LONGEST_S, in a directory
of its own that is deleted; nothing of it is kept. Its speed by kind of work (progress.Meter) is multiplied by the work
of the whole run, its peak of memory is measured.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from linnet.compress.block import Block
from linnet.compress.disk import disk_need
from linnet.compress.fitting import compress_block
from linnet.compress.heap import give_back
from linnet.compress.job import Job
from linnet.compress.memory import GROWTH_BYTES, Prediction
from linnet.compress.opened import opened
from linnet.compress.progress import CancelToken, Interrupted, Meter
from linnet.compress.running import RowRunner
from linnet.compress.site import Site
from linnet.compress.work import segment_work, total_work
from linnet.errors import CapacityError
from linnet.process_memory import peak_bytes, resident_bytes

LONGEST_S = 20.0
"""A block that takes longer is broken off: its speed is known by then."""

MEMORY_ERROR, TIME_ERROR = 0.15, 0.35
"""As fractions of what is predicted: how far the runs in docs/compress.md were off at most, rounded up."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take. ``memory_bytes``: the greatest resident size of this process; ``disk_bytes``: at the worst
    moment; ``seconds``: from the first segment on. Each ± its fraction, disk exactly."""

    memory_bytes: int
    disk_bytes: int
    seconds: float
    memory_error: float = MEMORY_ERROR
    time_error: float = TIME_ERROR


class _Deadline(CancelToken):
    """Also set once the time is over."""

    def __init__(self, asked: CancelToken, seconds: float) -> None:
        super().__init__()
        self._asked, self._end = asked, time.monotonic() + seconds

    @property
    def cancelled(self) -> bool:
        """See CancelToken."""
        self.reason = self._asked.reason
        return self._asked.cancelled or time.monotonic() > self._end


def estimate(job: Job, cancel: CancelToken) -> Estimate:
    """Do one block. Interrupted if ``cancel`` was set by somebody."""
    index = _largest_block(job)
    before, peak_before = resident_bytes(), peak_bytes()
    few = _with_one_chunk(job)
    meter = Meter(None, _Deadline(cancel, LONGEST_S), total_work(few), "nothing had been done yet")
    complete = True
    try:
        with tempfile.TemporaryDirectory(prefix="linnet-") as directory:
            _do_block(few, index, Path(directory), meter)
    except Interrupted:
        if cancel.cancelled:
            raise
        complete = False
    give_back()
    peak = peak_bytes()
    seconds = meter.seconds_of(total_work(job))
    memory = _memory(job.prediction, before, peak if complete and peak > peak_before else None)
    return Estimate(max(memory, peak if peak > peak_before else 0), disk_need(job).total, seconds)


def check_memory(found: Estimate, ceiling_bytes: int) -> None:
    """CapacityError if more memory is predicted than is allowed."""
    if found.memory_bytes > ceiling_bytes:
        raise CapacityError(
            f"compression needs {found.memory_bytes / 2**20:.0f} MiB, as one block has shown, above the ceiling of "
            f"{ceiling_bytes / 2**20:.0f} MiB: a recipe with a smaller chunk_tokens, or shorter rows "
            "(calibration_length), needs less",
            settings=["calibration_length"],
        )


def _memory(predicted: Prediction, before: int, peak: int | None) -> int:
    """The block's own peak where it was seen, else what its shapes say; tables outside the blocks are no part of it."""
    block = replace(predicted, base=before + GROWTH_BYTES, table=0).total if peak is None else peak
    return max(block, before + GROWTH_BYTES + predicted.table)


def _largest_block(job: Job) -> int:
    """Index of the segment with most work to fit."""
    works = segment_work(job)
    kinds = [segment.kind for segment in job.source.program.segments]
    blocks = [index for index, kind in enumerate(kinds) if kind == "block"]
    return max(blocks, key=lambda index: works[index]["fit"])


def _with_one_chunk(job: Job) -> Job:
    if job.rows is None:
        return job
    return replace(job, rows=job.rows.take(range(min(job.sequences_per_chunk, len(job.rows)))))


@torch.no_grad()
def _do_block(job: Job, index: int, directory: Path, meter: Meter) -> None:
    rows = RowRunner(job, directory)
    try:
        with opened(job) as source:
            if job.rows is not None:
                embed = source.program.segments[0]
                rows.embed(index - 1, embed, Block(embed, source), lambda _: None)
            meter.restart()
            compress_block(Site(job, index, source, rows, meter))
    finally:
        rows.close()
