# SPDX-License-Identifier: Apache-2.0
"""SqueezeLLM: k-means tables in which an error of a weight costs what the output is sensitive to it.

Kim et al. 2023, "SqueezeLLM: Dense-and-Sparse Quantization", section 4.1. The paper weighs by the Fisher information, a
backward pass over the whole model; here by the diagonal of the layer's own Hessian (the inputs' mean squares), which
needs none. The sparse term (section 4.2) is kmeans.py's.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from linnet.compress.algorithms.kmeans import Kmeans
from linnet.compress.statistic import ColumnSquares, Statistic, StatisticKind


class SqueezeLlm(Kmeans):
    """Tables by clustering, weights by sensitivity."""

    statistics: ClassVar[Mapping[str, StatisticKind]] = {"squares": ColumnSquares}

    def importance(self, statistics: Mapping[str, Statistic]) -> torch.Tensor:
        """See Kmeans.importance."""
        squares = statistics["squares"]
        assert isinstance(squares, ColumnSquares)
        return squares.root_mean.square()
