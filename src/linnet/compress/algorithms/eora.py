# SPDX-License-Identifier: Apache-2.0
"""EoRA: a term of low rank beside the codes (or zeros), by the error that the layer's output still has.

Liu et al. 2024, "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation". It
projects the error into the eigenspace of X^T X; any L with L L^T = X^T X gives the same term, and a Cholesky factor is
the cheapest.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from linnet.compress.factor import check_damping
from linnet.compress.low_rank import DAMPING, Closest, RepairOptions, hessian_factor
from linnet.compress.statistic import Hessian, Statistic, StatisticKind


class EoraOptions(RepairOptions, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it."""

    damping: float = DAMPING

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping("eora", self.damping)


class Eora(Closest):
    """Errors cost what the output loses."""

    Options: ClassVar[type] = EoraOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"hessian": Hessian}

    def cost_factor(self, where: str, statistics: Mapping[str, Statistic]) -> torch.Tensor:
        """See Closest.cost_factor."""
        return hessian_factor(where, statistics, self._options.damping)
