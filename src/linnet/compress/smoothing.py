# SPDX-License-Identifier: Apache-2.0
"""The smoothing steps of a block: one pass of its rows for each, then the folds it finds."""

from linnet.compress.site import Site
from linnet.compress.work import transform_pass


def smooth(site: Site) -> None:
    """Change the block as the recipe's smoothing steps say, in their order."""
    for transform in site.job.steps.block_transforms:
        folds = site.job.folds(site.index, transform)
        statistics = site.observe(*transform_pass(site.job, site.index, transform)) if folds else {}
        for fold in folds:
            made = transform.of(fold.readers[0].module)
            notes = made.apply(site.block, fold, site.job.schemes, fold.heard(statistics))
            site.smoothed(fold, transform.name, notes, made.work(fold.shape))
