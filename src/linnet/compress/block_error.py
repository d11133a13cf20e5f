# SPDX-License-Identifier: Apache-2.0
"""What a block's compression cost its output, measured on a few rows so that it costs next to nothing."""

import torch

from linnet.compress.running import RowRunner
from linnet.compress.site import Site
from linnet.models.build import build_program
from linnet.program.choose_numerics import choose_numerics
from linnet.schemes.scheme import DenseType, LinearScheme

TOKENS = 512
"""Of the first calibration rows: the block runs on them once more dense and once more compressed."""


class BlockError:
    """Made before anything in the block has changed; ``measured`` afterwards."""

    def __init__(self, site: Site, rows: RowRunner) -> None:
        self._site, self._rows = site, rows
        self._dense: torch.Tensor | None = None
        if site.segment.kind == "block":
            self._dense = rows.first_outputs(site.index, site.source.program, site.block.running(), TOKENS)

    def measured(self) -> float | None:
        """|y' - y|^2 / |y|^2 of the block's output, y from the dense block and y' from the compressed one on the same
        inputs, activations rounded where the scheme says so. None without such rows (a head), or if it is no number."""
        if self._dense is None:
            return None
        job, block = self._site.job, self._site.block

        def stored(name: str) -> DenseType | LinearScheme:
            return job.schemes.get(name.removesuffix(".weight"), "fp32")

        program = choose_numerics(build_program(job.source.spec, stored), "exact")
        compressed = self._rows.first_outputs(self._site.index, program, block.compressed(), TOKENS)
        error = float((compressed - self._dense).square().sum(dtype=torch.float64))
        size = float(self._dense.square().sum(dtype=torch.float64))
        return error / size if 0 < size < float("inf") and error < float("inf") else None
