# SPDX-License-Identifier: Apache-2.0
"""StageByStage: the fit of a block that asks a Fit for one linear after another."""

from typing import TYPE_CHECKING

from linnet.compress.algorithm import Fit
from linnet.compress.site import Site
from linnet.compress.stages import Stage, whole
from linnet.compress.work import segment_stages

if TYPE_CHECKING:
    from linnet.compress.steps import ByModule


class StageByStage:
    """Rows up to a tap, fits of what reads it, on with the compressed weights in their place."""

    def __init__(self, fits: "ByModule[Fit]") -> None:
        self._fits = fits

    def fit_block(self, site: Site) -> Stage:
        """See BlockFit. Fits that want no statistics need no rows."""
        left = whole(site.segment)
        for stage in segment_stages(site.job, site.index):
            readers = [info for info in site.linears if info.tap in stage.taps]
            if not readers:
                left = stage
                continue
            statistics = site.observe(stage, {info.tap: self._fits.of(info.module).statistics for info in readers})
            for info in readers:
                site.fit(info, self._fits.of(info.module), statistics[info.tap])
        self.fit_without_rows(site)
        return left

    def fit_without_rows(self, site: Site) -> None:
        """Every linear that has no codes yet."""
        for info in site.linears:
            if info.module not in site.block.packed:
                site.fit(info, self._fits.of(info.module), {})
