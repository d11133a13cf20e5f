# SPDX-License-Identifier: Apache-2.0
"""Static: one scale for all activations that a linear reads, or for all keys or values of a layer, from calibration.

Which magnitude becomes the end of the range: the greatest (min-max, the trade's default), one that all but a few
elements stay below (Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 5), or the one with the
least squared error.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from linnet.compress.magnitudes import Magnitudes
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.errors import CheckpointError, ConfigError
from linnet.schemes.scheme import Scheme

RANGE = "range"
"""The statistic's name."""


class StaticOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``scales``: mse, minmax, percentile. ``percentile``: of all elements, so many stay inside the range. ``kv``, for
    attention modules: what their part of the KV cache becomes, ``scheme`` (what the scheme says) or ``dense``."""

    scales: Literal["mse", "minmax", "percentile"] = "mse"
    percentile: float = 99.99
    kv: Literal["scheme", "dense"] = "scheme"

    def __post_init__(self) -> None:
        if not 50 <= self.percentile <= 100:
            raise ConfigError(f"percentile of static is {self.percentile}; accepted is 50 to 100")


class Static:
    """Built from its options once per run; holds no state between values."""

    Options: ClassVar[type] = StaticOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {RANGE: Magnitudes}

    def __init__(self, options: StaticOptions) -> None:
        self._options = options

    @property
    def keeps_kv(self) -> bool:
        """Whether a layer's keys and values are not rounded."""
        return self._options.kv == "dense"

    def scale(self, where: str, scheme: Scheme, statistics: Mapping[str, Statistic]) -> float:
        """The scale of one value; 1 for what is zero on every calibration row."""
        heard = statistics[RANGE]
        assert isinstance(heard, Magnitudes)
        if self._options.scales == "percentile":
            end = heard.quantile(self._options.percentile / 100)
        elif self._options.scales == "mse":
            end = heard.least_squares(scheme)
        else:
            end = heard.greatest
        scale = end / scheme.half_range
        if not scale < float("inf"):
            raise CheckpointError(f"the activations of {where} are too large for a scale on the calibration rows")
        return scale if scale > 0 else 1.0
