# SPDX-License-Identifier: Apache-2.0
"""Fits of a whole block by gradients: what is learned of each weight follows the error of the block's output.

Rows come one after another to save memory; the iterate is kept that is best on rows always the same.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec
import numpy as np
import torch

from linnet.compress.algorithm import Fitted
from linnet.compress.algorithms.awq import Awq, AwqOptions
from linnet.compress.scales import scales_of
from linnet.compress.stages import Stage, whole
from linnet.compress.statistic import RowSample, Statistic
from linnet.compress.units import PRODUCT_S, ROUNDED_S
from linnet.errors import ConfigError
from linnet.schemes.scheme import LinearScheme, Scheme

if TYPE_CHECKING:
    from linnet.compress.site import Site

_JUDGING_ROWS = 8
_JUDGEMENTS, _LEAST_STEPS = 20, 5
"""How often the iterate is judged on them, and how many steps lie between at least, so that it costs less than they."""


class LearningOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``iterations``: steps. ``batch``: calibration rows in each."""

    algorithm: ClassVar[str]
    iterations: int = 200
    batch: int = 4

    def __post_init__(self) -> None:
        for name, value, most in (("iterations", self.iterations, 100_000), ("batch", self.batch, 1024)):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} of {self.algorithm} is {value}; accepted is 1 to {most}")


class Learned(Protocol):
    """One weight, and of its rounding what is learned."""

    def weight(self) -> torch.Tensor:
        """The rounded weight as it is by now, fp32 [rows, columns]; a fresh one."""

    def descend(self, gradient: torch.Tensor, rate: float) -> None:
        """One step against the ``gradient`` by the rounded weight, which passes through roundings as if they were
        none."""

    def keep(self) -> None:
        """Remember what is learned by now."""

    def go_back(self) -> None:
        """To what was kept last."""

    def fitted(self, notes: Mapping[str, int]) -> Fitted:
        """The codes, in the scheme's layout."""


LearnedKind = Callable[[torch.Tensor, LinearScheme, Mapping[str, Statistic], torch.Tensor | None], Learned]
"""Makes one of a weight, its scheme, what its input is like, and which of its weights are not pruned."""


def learn_block(
    site: "Site",
    algorithm: str,
    kind: LearnedKind,
    steps: int,
    batch: int,
    rate: Callable[[int], float],
    work: Callable[[tuple[int, int]], float],
    follow: bool,
) -> Stage:
    """BlockFit.fit_block: ``steps`` on ``batch`` calibration rows each, the n-th as long as ``rate`` says; ``follow``:
    see BlockFit.follows_dense.

    A head, which is no block, gets the ranges of a search by its outputs and is rounded to nearest. What is pruned
    first stays zero, and what is learned makes up for that too: the output that is aimed at is the dense block's.
    """
    statistics = site.observe_once()
    coded = [info for info in site.linears if info.module in site.job.schemes]
    if site.segment.kind != "block":
        for info in coded:
            site.fit(info, Awq(AwqOptions()), statistics[info.tap])
        return whole(site.segment)
    site.aim(follow)
    site.sparsify_all(statistics)
    learned = {
        info.tensor: kind(
            site.dense(info), site.job.schemes[info.module], statistics[info.tap], site.block.kept.get(info.module)
        )
        for info in coded
    }
    if learned:
        best = _learn(site, learned, steps, batch, rate, sum(work(info.shape) for info in coded))
        for info in coded:
            site.pack(info.module, learned[info.tensor].fitted({"best_iteration": best}), algorithm, info.shape)
    return whole(site.segment)


def searched_scales(
    weight: torch.Tensor, scheme: Scheme, statistics: Mapping[str, Statistic], signed: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where learning begins: scales by what the sampled rows make of them; by the weight alone if no row was heard."""
    sample = statistics["sample"]
    assert isinstance(sample, RowSample)
    inputs = sample.values if len(sample.values) else None
    importance = None if inputs is None else inputs.square().mean(dim=0).numpy()
    return scales_of(weight.numpy(), scheme, True, importance, inputs, signed)


def learning_work(shape: tuple[int, int], steps: int, batch: int) -> float:
    """Rows of about 512 tokens through the rounded block and, twice as dear, back."""
    weights = shape[0] * shape[1]
    products = 2.0 * weights * 512 * batch * 3 * PRODUCT_S
    return steps * (products + weights * ROUNDED_S / 2)


def _learn(
    site: "Site",
    learned: Mapping[str, Learned],
    steps: int,
    batch: int,
    rate: Callable[[int], float],
    units: float,
) -> int:
    """Descend, then go back to the best iterate, whose number is returned; 0 is the start."""
    rows = site.heard

    def error() -> float:
        weights = site.block.running_with({name: each.weight() for name, each in learned.items()})
        differences = (site.outputs([row], weights) - site.aimed(row) for row in rows[:_JUDGING_ROWS])
        return sum(float(each.square().sum(dtype=torch.float64)) for each in differences)

    generator = torch.Generator().manual_seed(site.job.recipe.seed + site.index)
    every, best, least = max(_LEAST_STEPS, steps // _JUDGEMENTS), 0, error()
    for step in range(steps):
        chosen = torch.randperm(len(rows), generator=generator)[:batch].tolist()
        _descend(site, learned, [rows[place] for place in chosen], rate(step))
        judged = (step + 1) % every == 0 or step + 1 == steps
        if judged and (found := error()) < least:
            best, least = step + 1, found
            for each in learned.values():
                each.keep()
        site.learned(units / steps)
    for each in learned.values():
        each.go_back()
    return best


def _descend(
    site: "Site",
    learned: Mapping[str, Learned],
    rows: list[int],
    rate: float,
) -> None:
    """One step by the squared error of the block's output on ``rows``."""
    leaves = {name: each.weight().requires_grad_() for name, each in learned.items()}
    with torch.enable_grad():
        for row in rows:
            error = (site.outputs([row], site.block.running_with(leaves)) - site.aimed(row)).square().mean()
            error.backward()  # type: ignore[no-untyped-call]
    for name, each in learned.items():
        if (gradient := leaves.pop(name).grad) is not None:
            each.descend(gradient, rate)
