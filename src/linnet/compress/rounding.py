# SPDX-License-Identifier: Apache-2.0
"""Rounding to what a scheme can represent: the codecs' arithmetic, operation by operation, in torch.

Weights lie with their columns first ([columns, rows]), so that what shares a step of the algorithms lies together and
a scale per row is a plain vector.
"""

import numpy as np
import torch

from linnet.schemes import ELEMENTS, codecs
from linnet.schemes.scheme import Scheme

_CODEBOOKS = {
    name: (torch.from_numpy(element.values[element.ascending]), torch.from_numpy(element.midpoints.copy()))
    for name, element in ELEMENTS.items()
    if element.values is not None
}


def round_into(
    out: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, scheme: Scheme
) -> torch.Tensor:
    """``out`` = the representable values nearest to fp32 ``values``; scale and zero point fp32, broadcast against them
    ([..., rows] and [rows], as a rule)."""
    torch.div(values, scale, out=out)
    codebook = _CODEBOOKS.get(scheme.element)
    if codebook is not None:
        levels, midpoints = codebook
        return torch.mul(levels[torch.searchsorted(midpoints, out)], scale, out=out)
    if zero_point is not None:
        out.add_(zero_point)
    out.clamp_(*codecs.code_range(scheme))
    numbers = scheme.numbers
    if numbers.step != 1:
        return out.div_(numbers.step).floor_().mul_(numbers.step).add_(numbers.smallest + numbers.step).mul_(scale)
    if scheme.numbers.kind == "float":
        return torch.mul(out.to(torch.float8_e4m3fn).float(), scale, out=out)
    out.round_()
    if zero_point is not None:
        out.sub_(zero_point)
    return out.mul_(scale)


def step_sizes(values: torch.Tensor, scheme: Scheme) -> torch.Tensor | float:
    """How far apart the two numbers between which each of ``values`` (in units of its scale) lies are."""
    codebook = _CODEBOOKS.get(scheme.element)
    if codebook is not None:
        levels = codebook[0]
        upper = torch.searchsorted(levels, values).clamp_(1, len(levels) - 1)
        return levels[upper] - levels[upper - 1]
    if scheme.numbers.kind == "float":  # e4m3: three bits behind the point, exponents from -6 on
        return torch.exp2(values.abs().clamp(min=2.0**-6).log2_().floor_() - 3)
    return scheme.numbers.step


def number_range(scheme: Scheme) -> tuple[float, float]:
    """Smallest and greatest number that a code stands for, in units of the scale."""
    values = scheme.numbers.values
    return codecs.code_range(scheme) if values is None else (float(values.min()), float(values.max()))


def rounded(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """fp32 [rows, columns] -> its nearest representable values, with min-max scales (codecs.compute_scales)."""
    array = weight.contiguous().numpy()
    scale, zero_point = codecs.compute_scales(array, scheme)
    parameters = [
        None if each is None else torch.from_numpy(codecs.expand(each.astype(np.float32), scheme, array.shape))
        for each in (scale, zero_point)
    ]
    assert parameters[0] is not None
    values = torch.from_numpy(array).view(len(array), parameters[0].shape[1], -1)
    return round_into(torch.empty_like(values), values, parameters[0], parameters[1], scheme).view(weight.shape)


class ColumnRounder:
    """Rounds one column of a weight [rows, columns] after another, with scales known beforehand."""

    def __init__(
        self, scheme: Scheme, scale: np.ndarray, zero_point: np.ndarray | None, shape: tuple[int, int]
    ) -> None:
        self._scheme, self._shape = scheme, shape
        self._scales = self._columns(scale)
        self._zeros = None if zero_point is None else self._columns(zero_point)
        self._columns_per_scale = -(-shape[1] // len(self._scales))
        if scheme.block is not None:
            self._columns_per_scale = scheme.block[1]

    def _columns(self, parameter: np.ndarray) -> list[torch.Tensor]:
        """One fp32 vector [rows] per scale along the columns."""
        if self._scheme.block is not None:
            parameter = np.repeat(parameter, self._scheme.block[0], axis=0)
        wide = np.broadcast_to(parameter[: self._shape[0]], (self._shape[0], parameter.shape[1]))
        return list(torch.from_numpy(np.array(wide.T, np.float32, order="C")).unbind())

    def round_into(self, out: torch.Tensor, values: torch.Tensor, column: int) -> None:
        """``out`` [rows] = the representable values nearest to a column's ``values`` [rows]."""
        index = column // self._columns_per_scale
        zero_point = None if self._zeros is None else self._zeros[index]
        round_into(out, values, self._scales[index], zero_point, self._scheme)
