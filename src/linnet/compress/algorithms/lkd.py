# SPDX-License-Identifier: Apache-2.0
"""LKD: the weights themselves are trained so that the rounded block gives what the dense one does.

Yao et al. 2022, "ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers", section
4.2, layer-by-layer knowledge distillation: one block at a time is the student, its dense self the teacher, both on the
same inputs; gradients pass through the rounding as if it were none. Here scales stay where a search by the layers'
outputs puts them, and weights move by Adam in units of them, so that one rate serves every layer. Activations are not
rounded while it learns.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.learning import LearningOptions, learn_block, learning_work, searched_scales
from linnet.compress.rounding import round_into
from linnet.compress.stages import Stage
from linnet.compress.statistic import RowSample, Statistic, StatisticKind
from linnet.errors import ConfigError
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme

if TYPE_CHECKING:
    from linnet.compress.site import Site


class LkdOptions(LearningOptions, frozen=True, forbid_unknown_fields=True):
    """``rate``: what a weight moves at most in the first step, in units of its scale; it falls to nothing."""

    algorithm: ClassVar[str] = "lkd"
    rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate of lkd is {self.rate}; accepted is more than 0, at most 1")


class Lkd:
    """Codes of a block by distillation from its dense self."""

    Options: ClassVar[type] = LkdOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"sample": RowSample}
    follows_dense: ClassVar[bool] = False

    def __init__(self, options: LkdOptions) -> None:
        self._options = options

    def fit_block(self, site: "Site") -> Stage:
        """See BlockFit and learn_block."""
        steps, most = self._options.iterations, self._options.rate
        return learn_block(
            site,
            "lkd",
            TrainedWeight,
            steps,
            self._options.batch,
            lambda step: most * (1 - step / steps),
            self.work,
            self.follows_dense,
        )

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """What is learned, the best of it, its gradient and Adam's two means; the weight, its gradient and four of its
        stages."""
        return 11 * 4 * shape[0] * shape[1]

    def work(self, shape: tuple[int, int]) -> float:
        """See learning_work."""
        return learning_work(shape, self._options.iterations, self._options.batch)


class TrainedWeight:
    """One weight on its way, ``moved`` in units of each scale. What is not ``kept`` is zero and stays so."""

    def __init__(
        self,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        kept: torch.Tensor | None = None,
    ) -> None:
        self._linear, self._scheme, self._before = scheme, scheme.weight, weight
        self._scale, self._zero = searched_scales(weight, self._scheme, statistics)
        self._wide = self._expanded(self._scale)
        self._wide_zero = None if self._zero is None else self._expanded(self._zero)
        self._values = weight.view(len(weight), self._wide.shape[1], -1)
        self._kept = torch.ones(1) if kept is None else kept.view(self._values.shape).float()
        self._moved = torch.zeros_like(self._values).requires_grad_()
        self._adam = torch.optim.Adam([self._moved])
        self.keep()

    def _expanded(self, parameter: np.ndarray) -> torch.Tensor:
        shape = (self._before.shape[0], self._before.shape[1])
        return torch.from_numpy(codecs.expand(parameter.astype(np.float32), self._scheme, shape))

    def weight(self) -> torch.Tensor:
        """See Learned."""
        with torch.no_grad():
            rounded = torch.empty_like(self._values)
            round_into(rounded, self._trained(), self._wide, self._wide_zero, self._scheme)
        return rounded.view(self._before.shape)

    def _trained(self) -> torch.Tensor:
        return self._values + self._moved * self._kept * self._wide

    def descend(self, gradient: torch.Tensor, rate: float) -> None:
        """See Learned."""
        self._moved.grad = gradient.view(self._values.shape) * self._kept * self._wide
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad()

    def keep(self) -> None:
        """See Learned."""
        self._best = self._moved.detach().clone()

    def go_back(self) -> None:
        """See Learned."""
        with torch.no_grad():
            self._moved.copy_(self._best)

    def fitted(self, notes: Mapping[str, int]) -> Fitted:
        """See Learned."""
        with torch.no_grad():
            trained = self._trained().view(self._before.shape).numpy()
        packed = pack(
            codecs.quantize(trained, self._scheme, self._scale, self._zero), self._scale, self._zero, self._linear
        )
        return Fitted(packed, ratio(*squared_errors(packed, self._before)), None, notes)
