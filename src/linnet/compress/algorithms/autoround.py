# SPDX-License-Identifier: Apache-2.0
"""AutoRound: how every weight is rounded, and every scale's range, learned by the error of the block's output.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs": an offset V in
[-0.5, 0.5] is added to each weight before it is rounded, alpha and beta shrink the range of each scale; all follow the
sign of their gradient, by steps that fall to nothing. Here the ranges begin where a search by the layers' outputs puts
them (scales.py), and the iterate is kept that is best on rows always the same.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.learning import LearningOptions, learn_block, learning_work, searched_scales
from linnet.compress.rounding import number_range, round_into, step_sizes
from linnet.compress.stages import Stage
from linnet.compress.statistic import RowSample, Statistic, StatisticKind
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme, Scheme

if TYPE_CHECKING:
    from linnet.compress.site import Site


class AutoRoundOptions(LearningOptions, frozen=True, forbid_unknown_fields=True):
    """The first step is as long as 1 / iterations."""

    algorithm: ClassVar[str] = "autoround"


class AutoRound:
    """Codes and ranges of a block by signed gradient descent."""

    Options: ClassVar[type] = AutoRoundOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"sample": RowSample}

    def __init__(self, options: AutoRoundOptions) -> None:
        self._options = options

    def fit_block(self, site: "Site") -> Stage:
        """See BlockFit and learn_block."""
        steps, batch = self._options.iterations, self._options.batch
        return learn_block(
            site, "autoround", LearnedRounding, steps, batch, lambda step: (1 - step / steps) / steps, self.work
        )

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Offsets, the best of them and their gradient; the weight, its gradient and six of its stages."""
        return 11 * 4 * shape[0] * shape[1]

    def work(self, shape: tuple[int, int]) -> float:
        """See learning_work."""
        return learning_work(shape, self._options.iterations, self._options.batch)


class LearnedRounding:
    """One weight, and of its rounding what is learned: an offset of every code, the range of every scale.

    What is not ``kept`` (bool, as the weight) is zero and stays so.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        kept: torch.Tensor | None = None,
    ) -> None:
        self._weight, self._linear, self._scheme, self._kept = weight, scheme, scheme.weight, kept
        array = weight.numpy()
        start, _ = searched_scales(weight, self._scheme, statistics)
        low, high = codecs.extremes(array, self._scheme)
        widest, _ = codecs.scales_of_range(low, high, self._scheme)
        share = torch.from_numpy(start.astype(np.float32) / widest.astype(np.float32)).clamp_(0, 1)
        self._low, self._high = (torch.from_numpy(each) for each in (np.minimum(low, 0), np.maximum(high, 0)))
        self._lower, self._upper = share.clone().requires_grad_(), share.requires_grad_()
        self._offsets = torch.zeros_like(weight).requires_grad_()
        self.keep()

    def weight(self) -> torch.Tensor:
        """The rounded weight, fp32 [rows, columns]; gradients pass through roundings as if they were none."""
        scale, zero = self._range()
        wide = _wide(scale, self._scheme, self._weight.shape)
        values = self._weight.view(len(self._weight), wide.shape[1], -1)
        offsets = self._offsets.view(values.shape)
        wide_zero = torch.zeros(1) if zero is None else _wide(zero, self._scheme, self._weight.shape)
        exact = values / wide + wide_zero + offsets * step_sizes((values / wide).detach(), self._scheme)
        low, high = number_range(self._scheme)
        inside = exact.clamp(low, high)
        with torch.no_grad():
            numbers = self._rounded(values, wide, None if zero is None else wide_zero) / wide + wide_zero
        passed = inside + (numbers - inside).detach()
        result = ((passed - wide_zero) * wide).view(self._weight.shape)
        return result if self._kept is None else result * self._kept

    def descend(self, rate: float) -> None:
        """Against the sign of every gradient."""
        with torch.no_grad():
            for values, least, most in self._learned():
                if values.grad is not None:
                    values.sub_(values.grad.sign_(), alpha=rate).clamp_(least, most)
                    values.grad = None

    def keep(self) -> None:
        """Remember what is learned by now."""
        self._best = [values.detach().clone() for values, _, _ in self._learned()]

    def go_back(self) -> None:
        """To what was kept last."""
        with torch.no_grad():
            for (values, _, _), best in zip(self._learned(), self._best, strict=True):
                values.copy_(best)

    def fitted(self, notes: Mapping[str, int]) -> Fitted:
        """The codes, in the scheme's layout."""
        scale, zero = self._stored_range()
        shape = (self._weight.shape[0], self._weight.shape[1])
        wide, wide_zero = (
            None if each is None else torch.from_numpy(codecs.expand(each.astype(np.float32), self._scheme, shape))
            for each in (scale, zero)
        )
        assert wide is not None
        values = self._weight.view(shape[0], wide.shape[1], -1)
        rounded = self._rounded(values, wide, wide_zero).view(shape)
        if self._kept is not None:
            rounded.mul_(self._kept)
        packed = pack(codecs.quantize(rounded.numpy(), self._scheme, scale, zero), scale, zero, self._linear)
        return Fitted(packed, ratio(*squared_errors(packed, self._weight)), None, notes)

    def _learned(self) -> tuple[tuple[torch.Tensor, float, float], ...]:
        """What is learned, with its bounds. A range never closes."""
        return (self._offsets, -0.5, 0.5), (self._lower, 0.05, 1.0), (self._upper, 0.05, 1.0)

    def _rounded(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """The representable values nearest to the weights moved by their offsets."""
        steps = step_sizes(values / scale, self._scheme)
        moved = values + self._offsets.detach().view(values.shape) * steps * scale
        return round_into(torch.empty_like(values), moved, scale.detach(), zero, self._scheme)

    def _stored_range(self) -> tuple[np.ndarray, np.ndarray | None]:
        low, high = self._low * self._lower.detach(), self._high * self._upper.detach()
        return codecs.scales_of_range(low.numpy(), high.numpy(), self._scheme)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and zero point as stored, with the gradients of the range they are made of."""
        low, high = self._low * self._lower, self._high * self._upper
        stored_scale, stored_zero = self._stored_range()
        smallest, largest = codecs.code_range(self._scheme)
        if self._scheme.symmetric:
            scale, zero = torch.maximum(-low, high) / self._scheme.numbers.half_range, None
        else:
            scale = (high - low) / (largest - smallest)
            zero = smallest - low / scale.clamp(min=1e-30)
        scale = scale + (torch.from_numpy(stored_scale.astype(np.float32)) - scale).detach()
        if zero is not None and stored_zero is not None:
            zero = zero + (torch.from_numpy(stored_zero.astype(np.float32)) - zero).detach()
        return scale, zero


def _wide(parameter: torch.Tensor, scheme: Scheme, shape: torch.Size) -> torch.Tensor:
    """codecs.expand, through which gradients pass."""
    if scheme.block is not None:
        height, width = scheme.block
        tall = parameter.repeat_interleave(height, dim=0)[: shape[0]]
        parameter = tall.repeat_interleave(width, dim=1)[:, : shape[1]]
    return parameter[:, :, None]
