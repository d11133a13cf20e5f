# SPDX-License-Identifier: Apache-2.0
"""Where a result will lie, and how much disk making it takes."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from linnet.compress.caches import SCALES_BYTES
from linnet.compress.job import Job, is_written
from linnet.compress.stages import carried_bytes
from linnet.compress.steps import Steps
from linnet.errors import CapacityError, ConfigError
from linnet.formats.partial import partial_of
from linnet.models.load import ModelSource
from linnet.schemes.layouts import stored_bytes
from linnet.schemes.scheme import LinearScheme


@dataclass(frozen=True)
class DiskNeed:
    """Bytes. ``output``: all tensors of the result, at most (algorithm.MakesTerms). ``rows``: what lies between blocks
    and stages meanwhile. ``piece``: the largest part of the result that is there twice while it is assembled, when the
    rows are gone."""

    output: int
    rows: int
    piece: int

    @property
    def total(self) -> int:
        """At the worst moment."""
        return self.output + max(self.rows, self.piece)


def check_place(target: Path) -> Path:
    """The existing directory in which ``target`` will be made; ConfigError unless that is one and writable."""
    place = target.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{place} is not a directory, so {target} cannot be made there")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{place} is not writable, so {target} cannot be made there")
    return place


def disk_need(job: Job) -> DiskNeed:
    """What a run from its beginning takes."""
    sizes = _segment_bytes(job)
    files = 4 if job.steps.fits_blocks else 2  # what a segment reads and what the next one does, twice with aims
    rows = 0 if job.rows is None else files * job.rows.token_ids.size * job.source.spec.hidden_size * 4 + _carried(job)
    return DiskNeed(sum(sizes), rows, max(sizes))


def check_disk(job: Job, target: Path) -> None:
    """CapacityError unless the output, and the row files of a run, fit on the target's disk; what an unfinished run has
    left there will be part of it."""
    place, need, partial = check_place(target), disk_need(job), partial_of(target)
    there = sum(path.stat().st_blocks * 512 for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    needed, free = need.total - there, shutil.disk_usage(place).free
    if needed > free:
        raise CapacityError(
            f"compressing into {target} needs {needed / 2**20:.0f} MiB on disk (output {need.output / 2**20:.0f}; "
            f"calibration rows {need.rows / 2**20:.0f}, or a part of the output that is being copied "
            f"{need.piece / 2**20:.0f}; {there / 2**20:.0f} already there); {free / 2**20:.0f} MiB are free"
        )


def _carried(job: Job) -> int:
    """What the files between two stages of a block grow to."""
    program = job.source.program
    taps: dict[int, set[str]] = {}
    for info in job.linears:
        if job.steps.changes(info.module) and 0 < info.segment < job.last_tapped_segment():
            taps.setdefault(info.segment, set()).add(info.tap)
    tokens = 0 if job.rows is None else int(job.rows.token_ids.size)
    return max((carried_bytes(program, program.segments[at], names, tokens) for at, names in taps.items()), default=0)


def output_bytes(job: Job) -> int:
    """Bytes of all tensors of the result, at most."""
    return result_bytes(job.source, job.stored, job.steps)


def result_bytes(model: ModelSource, schemes: Mapping[str, LinearScheme], steps: Steps) -> int:
    """Bytes of all tensors of what steps (which know their modules) make of a model, its codes in these schemes; at
    most, where the rows decide what is stored beside codes."""
    return sum(_tensor_bytes(model, schemes, steps).values())


def _tensor_bytes(model: ModelSource, schemes: Mapping[str, LinearScheme], steps: Steps) -> dict[str, int]:
    checkpoint = model.checkpoint
    found = {name: checkpoint.info(name).nbytes for name in checkpoint.names() if is_written(model, name)}
    for module, scheme in schemes.items():
        rows, columns = checkpoint.info(f"{module}.weight").shape
        found[f"{module}.weight"] = stored_bytes(scheme, (rows, columns))
    for module in steps.linears:
        own = 0 if steps.factoriser_of(module) is not None else found[f"{module}.weight"]
        found[f"{module}.weight"] = own + steps.term_bytes(module)
    for cache, _ in steps.calibrated_caches():
        found[f"{cache.module}.k_scale"] = SCALES_BYTES
    return found


def _segment_bytes(job: Job) -> list[int]:
    """What each segment adds to the result; the last one also what no op reads."""
    program, left = job.source.program, _tensor_bytes(job.source, job.stored, job.steps)
    reads = {weight.name: weight.ref.checkpoint_name for weight in program.weights}
    sizes = []
    for segment in program.segments:
        names = {reads[name] for op in program.ops[segment.start : segment.stop] for name in op.weights}
        sizes.append(sum(left.pop(name, 0) for name in names))
    sizes[-1] += sum(left.values())
    return sizes
