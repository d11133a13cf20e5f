# SPDX-License-Identifier: Apache-2.0
"""AutoRound: how every weight is rounded, and every scale's range, learned by the error of the block's output.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs": an offset V in
[-0.5, 0.5] is added to each weight before it is rounded, alpha and beta shrink the range of each scale; all follow the
sign of their gradient, by steps that fall to nothing. The output that is aimed at is the dense model's, so that every
block makes up for what those before it have lost. Here the ranges begin where a search by the layers' outputs puts them
(scales.py), which also says of symmetric codes on which side of zero the one more lies: a scale may be negative. The
iterate is kept that is best on rows always the same.
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
    follows_dense: ClassVar[bool] = True

    def __init__(self, options: AutoRoundOptions) -> None:
        self._options = options

    def fit_block(self, site: "Site") -> Stage:
        """See BlockFit and learn_block."""
        steps, batch = self._options.iterations, self._options.batch
        return learn_block(
            site,
            "autoround",
            LearnedRounding,
            steps,
            batch,
            lambda step: (1 - step / steps) / steps,
            self.work,
            self.follows_dense,
        )

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Offsets, the best of them, the rounded weight and its gradient; of the one weight that is being moved seven
        stages, which is three of each where a block has at least that many."""
        return 7 * 4 * shape[0] * shape[1]

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
        start, _ = searched_scales(weight, self._scheme, statistics, signed=True)
        low, high = codecs.extremes(array, self._scheme)
        widest, _ = codecs.scales_of_range(low, high, self._scheme)
        share = torch.from_numpy(np.abs(start.astype(np.float32)) / widest.astype(np.float32)).clamp_(0, 1)
        self._sign = np.sign(start.astype(np.float32))
        self._low, self._high = (torch.from_numpy(each) for each in (np.minimum(low, 0), np.maximum(high, 0)))
        self._lower, self._upper = share.clone().requires_grad_(), share.requires_grad_()
        self._offsets = torch.zeros_like(weight).requires_grad_()
        self.keep()

    def weight(self) -> torch.Tensor:
        """See Learned."""
        with torch.no_grad():
            wide, zero = self._wide_range(*self._range())
            return self._rounded(self._weight.view(len(self._weight), wide.shape[1], -1), wide, zero)

    def descend(self, gradient: torch.Tensor, rate: float) -> None:
        """Against the sign of every gradient."""
        self._differentiate(gradient)
        with torch.no_grad():
            for values, least, most in self._learned():
                if values.grad is not None:
                    values.sub_(values.grad.sign_(), alpha=rate).clamp_(least, most)
                    values.grad = None

    def _differentiate(self, gradient: torch.Tensor) -> None:
        """The gradients of what is learned, of that by the rounded weight s (q - z), q = round(w / s + z + v): by v it
        is s, by s it is q - z - w / s and by z nothing; where q is clipped nothing, q - z and -s. Of offsets the signs
        are right, which is all that is read of them."""
        with torch.enable_grad():
            scale, zero = self._wide_range(*self._range())
        with torch.no_grad():
            wide, wide_zero = scale.detach(), None if zero is None else zero.detach()
            values = self._weight.view(len(self._weight), wide.shape[1], -1)
            rounded = self._rounded(values, wide, wide_zero).view(values.shape)
            upstream = gradient.view(values.shape)
            if self._kept is not None:
                upstream = upstream * self._kept.view(values.shape)
            numbers = values / wide
            exact = numbers + self._offsets.view(values.shape) * step_sizes(numbers, self._scheme)
            if wide_zero is not None:
                exact += wide_zero
            low, high = number_range(self._scheme)
            passed = upstream * ((exact >= low) & (exact <= high))
            self._offsets.grad = (passed * wide).view(self._weight.shape)
            by_scale = (upstream * rounded / wide).sub_(passed * numbers).sum_to_size(scale.shape)
            by_zero = None if zero is None else ((passed - upstream) * wide).sum_to_size(zero.shape)
        if zero is None:
            torch.autograd.backward([scale], [by_scale])
        else:
            torch.autograd.backward([scale, zero], [by_scale, by_zero])

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
        packed = pack(codecs.quantize(self.weight().numpy(), self._scheme, scale, zero), scale, zero, self._linear)
        return Fitted(packed, ratio(*squared_errors(packed, self._weight)), None, notes)

    def _learned(self) -> tuple[tuple[torch.Tensor, float, float], ...]:
        """What is learned, with its bounds. A range never closes."""
        return (self._offsets, -0.5, 0.5), (self._lower, 0.05, 1.0), (self._upper, 0.05, 1.0)

    def _rounded(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """fp32 [rows, columns]: the representable values nearest to the weights moved by their offsets."""
        steps = step_sizes(values / scale, self._scheme)
        moved = values + self._offsets.detach().view(values.shape) * steps * scale
        rounded = round_into(torch.empty_like(values), moved, scale, zero, self._scheme).view(self._weight.shape)
        return rounded if self._kept is None else rounded.mul_(self._kept)

    def _stored_range(self) -> tuple[np.ndarray, np.ndarray | None]:
        low, high = self._low * self._lower.detach(), self._high * self._upper.detach()
        scale, zero = codecs.scales_of_range(low.numpy(), high.numpy(), self._scheme)
        return (scale * self._sign).astype(scale.dtype), zero

    def _range(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and zero point as stored, with the gradients of the range they are made of."""
        low, high = self._low * self._lower, self._high * self._upper
        stored_scale, stored_zero = self._stored_range()
        smallest, largest = codecs.code_range(self._scheme)
        if self._scheme.symmetric:
            scale = torch.maximum(-low, high) / self._scheme.half_range * torch.from_numpy(self._sign)
            zero = None
        else:
            scale = (high - low) / (largest - smallest)
            zero = smallest - low / scale.clamp(min=1e-30)
        scale = scale + (torch.from_numpy(stored_scale.astype(np.float32)) - scale).detach()
        if zero is not None and stored_zero is not None:
            zero = zero + (torch.from_numpy(stored_zero.astype(np.float32)) - zero).detach()
        return scale, zero

    def _wide_range(self, scale: torch.Tensor, zero: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both broadcast against the weight seen as [rows, groups, columns / groups]."""
        shape = self._weight.shape
        return _wide(scale, self._scheme, shape), None if zero is None else _wide(zero, self._scheme, shape)


def _wide(parameter: torch.Tensor, scheme: Scheme, shape: torch.Size) -> torch.Tensor:
    """codecs.expand, through which gradients pass."""
    if scheme.block is not None:
        height, width = scheme.block
        tall = parameter.repeat_interleave(height, dim=0)[: shape[0]]
        parameter = tall.repeat_interleave(width, dim=1)[:, : shape[1]]
    return parameter[:, :, None]
