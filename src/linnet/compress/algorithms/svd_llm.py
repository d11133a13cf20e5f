# SPDX-License-Identifier: Apache-2.0
"""SVD-LLM: truncated SVD with the least squared error of the layer's output on the calibration rows.

Wang et al. 2024, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", section
3.1: L is a Cholesky factor of the rows' X^T X, and what is truncated is then exactly what the output loses. Its second
part, an update of what was kept, is what ``low_rank`` does for the rounding of ``up``. Ranks are the recipe's.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from linnet.compress.factor import check_damping
from linnet.compress.low_rank import DAMPING, Closest, FactoriseOptions, hessian_factor
from linnet.compress.statistic import Hessian, Statistic, StatisticKind


class SvdLlmOptions(FactoriseOptions, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it."""

    damping: float = DAMPING

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping("svd_llm", self.damping)


class SvdLlm(Closest):
    """Errors cost what the output loses."""

    Options: ClassVar[type] = SvdLlmOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"hessian": Hessian}

    def cost_factor(self, where: str, statistics: Mapping[str, Statistic]) -> torch.Tensor:
        """See Closest.cost_factor."""
        return hessian_factor(where, statistics, self._options.damping)
