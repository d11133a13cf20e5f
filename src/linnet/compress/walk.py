# SPDX-License-Identifier: Apache-2.0
"""The walk over the segments: embeddings once, then block by block; one block of weights in memory at a time.

Order of side effects per segment: rows for the next segment written and durable; tensors added; one commit (the
resume point) with the segment's record; older rows deleted. A killed run repeats at most one segment.
"""

from typing import Any

import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.block import Block
from linnet.compress.block_error import BlockErrors
from linnet.compress.fitting import compress_block
from linnet.compress.heap import give_back
from linnet.compress.job import Job
from linnet.compress.opened import opened
from linnet.compress.progress import Meter
from linnet.compress.running import RowRunner
from linnet.compress.site import Site
from linnet.compress.work import segment_work
from linnet.errors import CheckpointError
from linnet.formats import CheckpointWriter
from linnet.formats.durable import START_AFRESH
from linnet.schemes.packed_weight import quantize_weight, without_zeros


class Walk:
    """One run over a Job's segments, writing into a CheckpointWriter that may already hold some of them."""

    def __init__(self, job: Job, writer: CheckpointWriter) -> None:
        self._job, self._writer = job, writer
        self._program = job.source.program
        self._rows = RowRunner(job, writer.scratch)
        self._errors = BlockErrors(job, self._rows)
        self._last_tapped = job.last_tapped_segment()
        self._written: set[str] = set(writer.finished)

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
                with opened(self._job) as source:
                    note = self._segment(Site(self._job, index, source, self._rows, meter))
                self._writer.commit(note)
                give_back()
                self._rows.keep_only(index + 1 if note["rows_sha256"] is not None else None)
                meter.advance("compress", segment.name, "write", work[index].get("write", 0.0))
        finally:
            self._rows.close()

    def layers(self) -> dict[str, dict[str, Any]]:
        """The record of every compressed module, in the order of the walk."""
        return {module: record for note in self._writer.notes for module, record in note["layers"].items()}

    def blocks(self) -> dict[str, dict[str, Any]]:
        """Block -> the relative error of its output, of those through which rows went."""
        errors = {note["segment"]: note["output_error"] for note in self._writer.notes}
        return {name: {"output_error": error} for name, error in errors.items() if error is not None}

    def left_out(self) -> int:
        """How many calibration rows were not counted because something in them was NaN or infinite."""
        return len(self._writer.notes[-1]["left_out"])

    def _resume(self, done: int) -> None:
        note = self._writer.notes[-1]
        if note["segment"] != self._program.segments[done - 1].name:
            raise CheckpointError(f"the resume point is of segment {note['segment']}, not of the walk; {START_AFRESH}")
        self._rows.resume(done, note["rows_sha256"], note["aims_sha256"], note["left_out"])

    def _segment(self, site: Site) -> dict[str, Any]:
        """Transform, fit, advance the rows, add the tensors; returns the note of the resume point."""
        digest, error = None, None
        if site.segment.kind == "embed":
            if self._job.embedding in self._job.schemes:
                self._fit_embedding(site)
            if site.index < self._last_tapped:
                digest = self._rows.embed(site.index, site.segment, site.block, site.embedded)
        else:
            digest, error = self._block(site)
        self._add_tensors(site)
        note = {"segment": site.segment.name, "rows_sha256": digest, "layers": site.records}
        note |= {"aims_sha256": self._rows.aims_digest if digest is not None else None}
        return note | {"output_error": error, "left_out": sorted(self._rows.left_out)}

    def _block(self, site: Site) -> tuple[str | None, float | None]:
        """Smooth, fit, advance the rows; returns their digest (None behind the last block whose rows anybody reads) and
        the error of the block's output."""
        dense = self._errors.before(site) if site.index <= self._last_tapped else None
        digest = compress_block(site)
        return digest, self._errors.after(site, dense)

    def _fit_embedding(self, site: Site) -> None:
        """An embedding has no input rows: it is rounded to nearest whatever the algorithm."""
        module = self._job.embedding
        weight = site.block.unpacked(f"{module}.weight")
        packed = quantize_weight(weight, self._job.schemes[module])
        site.check(module)
        fitted = Fitted(packed, ratio(*squared_errors(packed, weight)))
        site.pack(module, fitted, "rtn", packed.shape)

    # -- writing ---------------------------------------------------------------------------------------------------

    def _add_tensors(self, site: Site) -> None:
        """The segment's tensors; with the last one also those that no op reads, so that nothing is lost."""
        for module, weight in site.block.packed.items():
            self._writer.add_packed(module, weight)
            self._written.add(f"{module}.weight")
        for module, terms in site.block.terms().items():
            self._writer.add_terms(module, terms, site.block.term_modules(module))
        for name in site.block.names:
            if name.removesuffix(".weight") in self._job.sparse:
                self._writer.add_packed(name.removesuffix(".weight"), without_zeros(site.block.stored(name)))
            self._add_dense(name, site.block)
        for name, scale in site.cache_scales().items():
            self._writer.add(name, scale)
            self._written.add(name)  # the source may have one of its own
        if site.index == len(self._program.segments) - 1:
            for name in site.source.checkpoint.names():
                if self._job.is_written(name):
                    self._add_dense(name, site.block)

    def _add_dense(self, name: str, block: Block) -> None:
        module = name.removesuffix(".weight")
        replaced = module in self._job.stored or self._job.steps.factoriser_of(module) is not None
        if name not in self._written and not replaced:
            self._writer.add(name, self._job.source.as_published(name, block.stored(name)))
            self._written.add(name)
