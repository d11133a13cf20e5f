# SPDX-License-Identifier: Apache-2.0
"""GPTQ: round one input column at a time, move its error onto the columns that are still free.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", section 3.3.
The free columns' optimal correction needs the rows of U, the upper Cholesky factor of H^-1 = U^T U. With
H = R R^T, R upper triangular (the Cholesky factor of H with both axes reversed), U is simply R^-1: one Cholesky and
one triangular inverse, and H^-1 itself is never formed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec
import numpy as np
import torch

from linnet.compress.algorithm import Fit, ratio, squared_errors
from linnet.compress.scales import of_one_group, scales_of
from linnet.compress.statistic import Hessian, Statistic
from linnet.errors import CheckpointError, ConfigError
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme, Scheme

BLOCK_COLUMNS = 128
"""Errors reach the columns beyond a block in one matrix product (section 3.3, "lazy batch-updates")."""

_DAMPING_STEPS = 8
_CODEBOOKS = {
    element: (torch.from_numpy(values.copy()), torch.from_numpy(codecs.CODEBOOK_MIDPOINTS[element].copy()))
    for element, values in codecs.CODEBOOKS.items()
}


class GptqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it; tenfold on each failure to factorise.

    ``act_order``: most active columns first; groups stay where they are (scales from the unmoved weight), so that the
    layout is the canonical one. ``scales``: minmax, or mse (the clipping of least error, weighted by H's diagonal).
    """

    damping: float = 0.01
    act_order: bool = False
    scales: Literal["minmax", "mse"] = "mse"

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping of gptq is {self.damping}; accepted is above 0 and at most 1")


@dataclass(frozen=True)
class _Factor:
    """What fits of one tap share. ``upper``: U of the damped H, columns in ``order`` if that is not None."""

    upper: torch.Tensor
    order: torch.Tensor | None
    importance: np.ndarray  # diagonal of the damped H, in the original order
    damping: float  # fraction of the mean diagonal that was needed
    added: float  # what was added to the diagonal
    dead: torch.Tensor  # bool: inputs that were 0 on every row; their columns are rounded to nearest


class Gptq:
    """Codes by GPTQ on the Hessian of the calibration rows."""

    Options: ClassVar[type] = GptqOptions
    statistics: ClassVar[Mapping[str, Callable[[int], Statistic]]] = {"hessian": Hessian}

    def __init__(self, options: GptqOptions) -> None:
        self._options = options

    def fit(
        self,
        where: str,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> Fit:
        """See Algorithm.fit."""
        hessian = statistics["hessian"]
        assert isinstance(hessian, Hessian)
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{where} holds NaN or infinity and cannot be quantised")
        factor = hessian.derived(self._options, lambda: _factorise(where, hessian, self._options))
        size = hessian.quadratic(weight)
        working = weight.clone()
        scale, zero_point, damped_error = self._solve(working, scheme.weight, factor, tick)
        codes = codecs.quantize(working.numpy(), scheme.weight, scale, zero_point)
        unheard = float((working[:, factor.dead] - weight[:, factor.dead]).square().sum(dtype=torch.float64))
        del working
        packed = pack(codes, scale, zero_point, scheme)
        squared, norm = squared_errors(packed, weight)
        error = max(damped_error - factor.added * (squared - unheard), 0.0)
        notes = {"damping": factor.damping, "dead_inputs": int(factor.dead.sum())}
        return Fit(packed, ratio(squared, norm), error / size if size > 0 else 0.0, notes)

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Copies of H while factorising, then U; the working weight, a block of it, its codes."""
        rows, columns = shape
        solving = columns * columns * 4 + rows * (columns * (4 + 2) + 4 * 4 * BLOCK_COLUMNS)
        return max(4 * columns * columns * 4, solving)

    def _solve(
        self, weight: torch.Tensor, scheme: Scheme, factor: _Factor, tick: Callable[[float], None]
    ) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Replace ``weight`` by its quantised values; returns scale, zero point and the damped squared output error.

        The error leaves the dead columns out: no row hears them, whatever stands on H's diagonal to factorise it.
        Group scales are computed when a group's first column is reached, from the weights as updated by then; with
        act_order, and for every other granularity, from the weight as it came.
        """
        search = self._options.scales == "mse"
        rows, columns = weight.shape
        group = scheme.group_size if scheme.group_size is not None and factor.order is None else None
        if group is None:
            scale, zero_point = scales_of(weight.numpy(), scheme, search, factor.importance)
            rounder = _Rounder(scheme, scale, zero_point, (rows, columns))
        else:
            shape = codecs.scale_shape(scheme, (rows, columns))
            scale = np.zeros(shape, codecs.FLOAT_DTYPES[scheme.scale_dtype])
            zero_point = None if scheme.symmetric else np.zeros(shape, np.int8)
        order = None if factor.order is None else factor.order.tolist()
        ordered = weight if factor.order is None else weight[:, factor.order].contiguous()
        step = BLOCK_COLUMNS if group is None else group * max(1, BLOCK_COLUMNS // group)  # groups lie in one block
        heard = ~factor.dead if factor.order is None else ~factor.dead[factor.order]
        total = 0.0
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            block = ordered[:, start:stop].T.contiguous()  # [columns of the block, rows]: a column lies together
            errors = torch.empty_like(block)
            upper = factor.upper[start:stop, start:stop]
            for i in range(stop - start):
                column = start + i
                if group is not None and column % group == 0:
                    rounder = self._begin_group(block[i : i + group], column, scheme, factor, scale, zero_point)
                place = column if order is None else order[column]
                rounded = rounder.round(block[i], place if group is None else column % group)
                errors[i] = (block[i] - rounded) / upper[i, i]
                block[i] = rounded
                block[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
            ordered[:, start:stop] = block.T
            ordered[:, stop:].addmm_(errors.T, factor.upper[start:stop, stop:], alpha=-1)
            total += float(errors[heard[start:stop]].square_().sum(dtype=torch.float64))
            tick((stop - start) / columns)
        if factor.order is not None:
            weight[:, factor.order] = ordered
        return scale, zero_point, total

    def _begin_group(
        self,
        values: torch.Tensor,
        column: int,
        scheme: Scheme,
        factor: _Factor,
        scale: np.ndarray,
        zero_point: np.ndarray | None,
    ) -> "_Rounder":
        """Scale and zero point of the group [columns of the group, rows] that begins at ``column``."""
        group, rows = values.shape
        one = of_one_group(scheme)
        importance = factor.importance[column : column + group]
        search = self._options.scales == "mse"
        own_scale, own_zero = scales_of(np.ascontiguousarray(values.T.numpy()), one, search, importance)
        scale[:, column // group] = own_scale[:, 0]
        if zero_point is not None and own_zero is not None:
            zero_point[:, column // group] = own_zero[:, 0]
        return _Rounder(one, own_scale, own_zero, (rows, group))


def _factorise(where: str, hessian: Hessian, options: GptqOptions) -> _Factor:
    matrix = hessian.matrix(where)
    diagonal = torch.diagonal(matrix)
    dead = diagonal <= 0
    mean = float(diagonal.sum(dtype=torch.float64)) / max(int((~dead).sum()), 1) or 1.0
    diagonal[dead] = mean
    order = torch.argsort(diagonal, descending=True, stable=True) if options.act_order else None
    original = diagonal.clone()
    if order is not None:
        matrix = matrix[order][:, order]
    matrix = torch.flip(matrix, (0, 1))
    base = torch.diagonal(matrix).clone()
    damping = options.damping
    for _ in range(_DAMPING_STEPS):
        torch.diagonal(matrix).copy_(base + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) == 0:
            break
        damping *= 10
    else:
        raise CheckpointError(f"{where}: the Hessian cannot be factorised even with a damping of {damping / 10:g}")
    del matrix
    root = torch.flip(lower, (0, 1))
    del lower
    upper = torch.linalg.solve_triangular(root, torch.eye(root.shape[0]), upper=True)
    importance = (original + damping * mean).numpy()
    return _Factor(upper, order, importance, damping, damping * mean, dead)


class _Rounder:
    """Rounds one column: the codecs' arithmetic, operation by operation, in torch."""

    def __init__(
        self, scheme: Scheme, scale: np.ndarray, zero_point: np.ndarray | None, shape: tuple[int, int]
    ) -> None:
        self._scheme, self._shape = scheme, shape
        self._smallest, self._largest = codecs.code_range(scheme)
        self._scales = self._columns(scale.astype(np.float32))
        self._zeros = None if zero_point is None else self._columns(zero_point.astype(np.float32))
        self._columns_per_scale = -(-shape[1] // self._scales.shape[0])
        if scheme.block is not None:
            self._columns_per_scale = scheme.block[1]

    def _columns(self, parameter: np.ndarray) -> torch.Tensor:
        """[scales along the columns, rows]."""
        if self._scheme.block is not None:
            parameter = np.repeat(parameter, self._scheme.block[0], axis=0)
        wide = np.broadcast_to(parameter[: self._shape[0]], (self._shape[0], parameter.shape[1]))
        return torch.from_numpy(np.array(wide.T, order="C"))

    def round(self, values: torch.Tensor, column: int) -> torch.Tensor:
        """The nearest representable values of a column [rows]."""
        index = column // self._columns_per_scale
        scale = self._scales[index]
        scaled = values / scale
        codebook = _CODEBOOKS.get(self._scheme.element)
        if codebook is not None:
            levels, midpoints = codebook
            return levels[torch.searchsorted(midpoints, scaled)] * scale
        if self._zeros is not None:
            scaled += self._zeros[index]
        scaled.clamp_(self._smallest, self._largest)
        if self._scheme.element == "fp8_e4m3":
            return scaled.to(torch.float8_e4m3fn).float() * scale
        scaled.round_()
        if self._zeros is not None:
            scaled -= self._zeros[index]
        return scaled * scale
