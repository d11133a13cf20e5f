# SPDX-License-Identifier: Apache-2.0
"""What is done to a block. StageByStage, the usual fit: one linear after another, its zeros, codes, a term for both."""

from collections.abc import Mapping
from typing import cast

from linnet.compress.algorithm import BlockFit, Fit
from linnet.compress.site import Site
from linnet.compress.smoothing import smooth
from linnet.compress.stages import Stage, whole
from linnet.compress.statistic import Statistic
from linnet.compress.work import asked, segment_stages
from linnet.models.inventory import LinearInfo


def compress_block(site: Site) -> str | None:
    """Smooth, fit, advance the rows; returns their digest, None behind the last block whose rows anybody reads."""
    smooth(site)
    fits = site.job.steps.fits
    whole_block = fits is not None and isinstance(fits.default, BlockFit)
    left = (cast("BlockFit", fits.default) if fits is not None and whole_block else StageByStage()).fit_block(site)
    return site.advance(left) if site.index < site.job.last_tapped_segment() else None


class StageByStage:
    """Rows up to a tap, what becomes of its readers, on with the compressed weights in their place."""

    def fit_block(self, site: Site) -> Stage:
        """See BlockFit. Fits that want no statistics need no rows."""
        left, done = whole(site.segment), set[str]()
        for stage in segment_stages(site.job, site.index):
            if not stage.taps:
                left = stage
                continue
            readers = [info for info in site.linears if info.tap in stage.taps]
            statistics = site.observe(stage, asked(site.job, site.index, stage))
            for info in readers:
                _compress(site, info, statistics.get(info.tap, {}))
            done |= {info.module for info in readers}
        for info in site.linears:
            if info.module not in done:
                _compress(site, info, {})  # needs no rows
        return left


def _compress(site: Site, info: LinearInfo, statistics: Mapping[str, Statistic]) -> None:
    """One linear, by whatever the recipe has for it."""
    steps = site.job.steps
    factoriser, repair = steps.factoriser_of(info.module), steps.repair_of(info.module)
    sparsifier, fit = steps.sparsifier_of(info.module), steps.fit_of(info.module)
    before = None if repair is None else site.dense(info)
    if factoriser is not None:
        site.factorise(info, factoriser, statistics)
    if sparsifier is not None:
        site.sparsify(info, sparsifier, statistics)
    if fit is not None:
        site.fit(info, cast("Fit", fit), statistics)
    if repair is not None and before is not None:
        site.repair(info, repair, before, statistics)
