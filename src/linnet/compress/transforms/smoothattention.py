# SPDX-License-Identifier: Apache-2.0
"""SmoothAttention: channels of the keys in which all keys are large are divided by some of it, queries multiplied.

Lin et al. 2024, "QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving", section 4.2: keys have
outliers in the same few channels of each head, so that one scale for a token and head leaves few codes for the others.
A scale of its own for every channel is what a cache laid out token by token cannot carry; folded into the weights it
costs nothing. Scales are max|K| ** alpha; with ``search`` the alpha is the one with the least squared error of scores.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import torch

from linnet.backends.reference.ops import dequantise, quantise
from linnet.compress.block import Block
from linnet.compress.key_folds import KeyFold
from linnet.compress.statistic import SAMPLE_ROWS, ColumnMagnitude, RowSample, Statistic, StatisticKind
from linnet.compress.transform import FoldKind
from linnet.compress.transforms.scale_search import balanced
from linnet.compress.units import PRODUCT_S
from linnet.errors import ConfigError
from linnet.schemes.scheme import LinearScheme, Scheme

ALPHAS = tuple(step / 10 for step in range(11))
_TRIED = Scheme("int4", "token", dynamic=True)
"""What the search rounds keys to: where they have fewest codes."""


class SmoothAttentionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``alpha``: how much of a channel's range the queries take over, 0 to 1; ``search``: the best of 11 a layer."""

    alpha: float | Literal["search"] = "search"

    def __post_init__(self) -> None:
        if self.alpha != "search" and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha of smoothattention is {self.alpha}; accepted is 0 to 1, or search")


class SmoothAttention:
    """Scales from the greatest keys of each channel."""

    Options: ClassVar[type] = SmoothAttentionOptions
    folds: ClassVar[FoldKind] = "keys"
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude, "sample": RowSample}

    def __init__(self, options: SmoothAttentionOptions) -> None:
        self._options = options

    def apply(
        self,
        block: Block,
        fold: KeyFold,
        schemes: Mapping[str, LinearScheme],
        statistics: Mapping[str, Statistic],
    ) -> Mapping[str, Any]:
        """See BlockTransform.apply."""
        magnitude, keys, queries = (statistics[name] for name in ("magnitude", "sample", "query_sample"))
        assert isinstance(magnitude, ColumnMagnitude)
        assert isinstance(keys, RowSample)
        assert isinstance(queries, RowSample)
        greatest = fold.shared(magnitude.greatest)

        def scales(alpha: float) -> torch.Tensor:
            return torch.stack([balanced(head**alpha, head > 0) for head in greatest])

        def error(alpha: float) -> float:
            return _score_error(keys.values, queries.values, scales(alpha))

        alphas = ALPHAS if self._options.alpha == "search" else (self._options.alpha,)
        errors = {alpha: error(alpha) for alpha in (0.0, *alphas)}
        best = min(alphas, key=lambda alpha: errors[alpha])
        if best:
            fold.apply(block, scales(best))
        return {"alpha": best, "error_before": errors[0.0], "error": errors[best]}

    def apply_bytes(self, shape: tuple[int, int]) -> int:
        """Keys, queries and scores of the sample, exact and not."""
        return 4 * 2 * SAMPLE_ROWS * (4 * shape[0] + 3 * 2 * SAMPLE_ROWS)

    def work(self, shape: tuple[int, int]) -> float:
        """Scores of every alpha, exact and rounded."""
        return 2 * len(ALPHAS) * 2.0 * (2 * SAMPLE_ROWS) ** 2 * shape[0] * PRODUCT_S


def _score_error(keys: torch.Tensor, queries: torch.Tensor, scales: torch.Tensor) -> float:
    """|Q s (K / s rounded - K / s)^T|^2 / |Q K^T|^2 over all heads, of sampled rows [rows, heads * size]."""
    heads, size = scales.shape
    wrong = whole = 0.0
    group = queries.shape[1] // keys.shape[1]
    for head in range(heads):
        own = keys[:, head * size : (head + 1) * size]
        asked = queries[:, head * size * group : (head + 1) * size * group].reshape(-1, size)
        scaled = own / scales[head]
        change = (dequantise(quantise(scaled, _TRIED)) - scaled) * scales[head]
        wrong += float((asked @ change.T).square().sum(dtype=torch.float64))
        whole += float((asked @ own.T).square().sum(dtype=torch.float64))
    return wrong / whole if whole > 0 else 0.0
