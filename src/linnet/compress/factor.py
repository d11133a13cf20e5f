# SPDX-License-Identifier: Apache-2.0
"""The factor of the inverse Hessian by which errors move onto the columns that are still free.

What the free columns' optimal correction needs are the rows of U, the upper Cholesky factor of H^-1 = U^T U. With
H = R R^T, R upper triangular (the Cholesky factor of H with both axes reversed), U is simply R^-1: one Cholesky and
one triangular inverse, and H^-1 itself is never formed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import strtri

from linnet.compress.statistic import Hessian
from linnet.errors import CheckpointError, ConfigError

_DAMPING_STEPS = 8
FACTOR_COPIES = 2
"""Matrices as large as H, itself not counted, that ``factorise`` holds at once."""


@dataclass(frozen=True)
class Factor:
    """What fits of one tap share. ``upper``: U of the damped H, columns in ``order`` if that is not None."""

    upper: torch.Tensor
    order: torch.Tensor | None
    importance: np.ndarray  # diagonal of the damped H, in the original order
    damping: float  # fraction of the mean diagonal that was needed
    added: float  # what was added to the diagonal
    dead: torch.Tensor  # bool: inputs that were 0 on every row; their columns are rounded to nearest


def check_damping(algorithm: str, damping: float) -> None:
    """ConfigError unless it is a fraction of H's mean diagonal that can be added to it."""
    if not 0 < damping <= 1:
        raise ConfigError(f"damping of {algorithm} is {damping}; accepted is above 0 and at most 1")


def fill_dead(matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Let inputs that were 0 on every row count, on H's diagonal, as the others do on average -> which (bool), and that
    mean."""
    diagonal = torch.diagonal(matrix)
    dead = diagonal <= 0
    mean = float(diagonal.sum(dtype=torch.float64)) / max(int((~dead).sum()), 1) or 1.0
    diagonal[dead] = mean
    return dead, mean


def most_active_first(diagonal: torch.Tensor) -> torch.Tensor:
    """Columns by their entries on H's diagonal."""
    return torch.argsort(diagonal, descending=True, stable=True)


def most_active_groups_first(diagonal: torch.Tensor, group: int) -> torch.Tensor:
    """Groups of ``group`` columns, which tile them, by the sum of theirs; the columns of one in that order too."""
    groups = diagonal.view(-1, group)
    within = torch.argsort(groups, dim=1, descending=True, stable=True)
    places = within + torch.arange(0, len(diagonal), group)[:, None]
    return places[most_active_first(groups.sum(1))].flatten()


def factorise(
    where: str, hessian: Hessian, damping: float, order_of: Callable[[torch.Tensor], torch.Tensor] | None
) -> Factor:
    """Factorise the damped H; ``damping`` grows tenfold on each failure. order_of: H's diagonal -> its columns' order;
    None: as they are.

    CheckpointError, naming ``where``: it cannot be done, or an activation was NaN or infinite.
    """
    matrix = hessian.matrix(where)
    dead, mean = fill_dead(matrix)
    diagonal = torch.diagonal(matrix)
    order = None if order_of is None else order_of(diagonal)
    original = diagonal.clone()
    del diagonal  # a view: it would keep the matrix alive that is not in order yet
    if order is not None:
        matrix = matrix[order]
        matrix = matrix[:, order]  # in two steps, so that two of these matrices are alive, not three
    matrix = torch.flip(matrix, (0, 1))
    base = torch.diagonal(matrix).clone()
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
    # Fortran's lower triangle is ours transposed; LAPACK's inverse takes a third of the products of a solve
    inverse, _ = strtri(root.numpy().T, lower=1, overwrite_c=1)
    upper = torch.from_numpy(inverse.T)
    importance = (original + damping * mean).numpy()
    return Factor(upper, order, importance, damping, damping * mean, dead)
