# SPDX-License-Identifier: Apache-2.0
"""Shares by layer: blocks with more outliers lose fewer weights, the model as many as before.

Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
section 3: a weight is an outlier if |w_ij| ||x_j|| is more than M times the mean over its block; a block's share is the
model's less what its outliers are above their mean, scaled into a band of 2 lambda. M and lambda are the paper's for
LLaMA.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from linnet.compress.job import Job
from linnet.compress.sparsifier import Sparsifier
from linnet.compress.statistic import ColumnSquares, Statistic
from linnet.compress.steps import Steps
from linnet.models.inventory import LinearInfo
from linnet.schemes.sparsity import parse_pattern

OUTLIER = 5.0
"""M: times the mean."""
BAND = 0.08
"""lambda: no block's share is further than twice this from another's."""


def uneven(job: Job) -> list[LinearInfo]:
    """The linears that are pruned by a share of their block's own."""
    found = [(info, job.steps.sparsifier_of(info.module)) for info in job.linears]
    return [info for info, made in found if made is not None and made.shares == "outliers"]


def loud(weight: torch.Tensor, statistics: Mapping[str, Statistic]) -> torch.Tensor:
    """|w_ij| times the root mean square of x_j: [rows, columns]."""
    squares = statistics["squares"]
    assert isinstance(squares, ColumnSquares)
    return weight.abs() * squares.root_mean


def outlier_share(products: Sequence[torch.Tensor]) -> float:
    """Of a block's products, all linears together, how many are outliers; 0 of none."""
    count = sum(each.numel() for each in products)
    if not count:
        return 0.0
    bound = OUTLIER * sum(float(each.sum(dtype=torch.float64)) for each in products) / count
    return sum(int((each > bound).sum()) for each in products) / count


def offsets(outliers: Sequence[float]) -> list[float]:
    """What every block's share is above the model's: mean 0, at most 2 BAND apart."""
    low, high = min(outliers), max(outliers)
    scaled = [2 * BAND * (each - low) / (high - low) if high > low else 0.0 for each in outliers]
    mean = sum(scaled) / len(scaled)
    return [mean - each for each in scaled]


def with_shares(job: Job, outliers: Sequence[float]) -> Steps:
    """The job's steps with a rule for each linear that says the share of its block; ``outliers``: of every block.

    Blocks whose linears all have another rule take no part: shares even out among those that are pruned so.
    """
    steps, program = job.steps, job.source.program
    blocks = [index for index, segment in enumerate(program.segments) if segment.kind == "block"]
    pruned = {info.segment for info in uneven(job)}
    found = {block: share for block, share in zip(blocks, outliers, strict=True) if block in pruned}
    above = dict(zip(found, offsets(list(found.values())), strict=True))
    assert steps.sparsifiers is not None
    rules: list[tuple[str, Sparsifier]] = []
    for info in uneven(job):
        made = copy.copy(steps.sparsifiers.of(info.module))
        share = min(max(made.pattern.share + above[info.segment], 0.01), 0.99)
        made.pattern = parse_pattern(f"{100 * share:.2f}%")
        rules.append((info.module, made))
    return replace(steps, sparsifiers=replace(steps.sparsifiers, rules=(*rules, *steps.sparsifiers.rules)))
