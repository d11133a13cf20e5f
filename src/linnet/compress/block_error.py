# SPDX-License-Identifier: Apache-2.0
"""What a block's compression cost its output, measured on a few rows so that it costs next to nothing."""

from collections.abc import Mapping

import torch

from linnet.compress.job import Job
from linnet.compress.running import RowRunner
from linnet.compress.site import Site
from linnet.models.build import build_program
from linnet.models.rotations import rotations_of
from linnet.program.choose_numerics import choose_numerics
from linnet.program.program import Program
from linnet.schemes.scheme import DenseType, LinearScheme
from linnet.schemes.terms import Terms

TOKENS = 512
"""Of the first calibration rows: a block runs on them once more dense and once more compressed."""


class BlockErrors:
    """Measures one block after another."""

    def __init__(self, job: Job, rows: RowRunner) -> None:
        def stored(name: str) -> DenseType | LinearScheme:
            return job.schemes.get(name.removesuffix(".weight"), "fp32")

        self._rows, self._spec, self._stored = rows, job.source.spec, stored
        self._rotations = rotations_of(job.source.spec, job.source.checkpoint)
        self._compressed = self._program({})

    def _program(self, terms: Mapping[str, Terms]) -> Program:
        """Of the compressed model, some of whose linears are sums of terms."""
        program = build_program(self._spec, self._stored, terms=terms, rotations=self._rotations)
        return choose_numerics(program, "exact")

    def before(self, site: Site) -> torch.Tensor | None:
        """The dense block's output, before anything in it has changed; None for a head."""
        if site.segment.kind != "block":
            return None
        return self._rows.first_outputs(site.index, site.source.program, site.block.running(), TOKENS)

    def after(self, site: Site, dense: torch.Tensor | None) -> float | None:
        """|y' - y|^2 / |y|^2 of the block's output, y from the dense block and y' from the compressed one on the same
        inputs, activations rounded where the scheme says so. None without rows, or if it is no number."""
        if dense is None:
            return None
        terms = site.block.terms()
        program = self._program(terms) if terms else self._compressed
        compressed = self._rows.first_outputs(site.index, program, site.block.compressed(program), TOKENS)
        error = float((compressed - dense).square().sum(dtype=torch.float64))
        size = float(dense.square().sum(dtype=torch.float64))
        return error / size if 0 < size < float("inf") and error < float("inf") else None
