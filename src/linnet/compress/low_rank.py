# SPDX-License-Identifier: Apache-2.0
"""Terms of low rank: two narrow matrices beside a weight that lost something, or in a weight's place.

Whatever is to be made up for is a matrix E [rows, columns]: what rounding and pruning took, or the whole weight. The
term of rank k that leaves the least |(E - up down) L|^2 for a square L is known in closed form (Eckart and Young 1936):
``up`` spans the first k left singular vectors of E L, and ``down`` is what of E lies in that span, so that the inverse
of L is never asked for. Algorithms differ in L alone: what an error of each column costs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import msgspec
import numpy as np
import torch
from scipy.linalg import eigh

from linnet.compress.factor import fill_dead
from linnet.compress.statistic import Hessian, Statistic, StatisticKind
from linnet.compress.units import PRODUCT_S
from linnet.errors import CheckpointError, ConfigError
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import BF16, DOWN_INT8, UP_INT8, LowRank, break_even, plain

_DAMPING_STEPS = 8
EIGENVECTORS = 6
"""Products of n^3 that the leading eigenvectors of n x n take, about."""
DAMPING = 0.01
"""Of H's mean diagonal, added to it: an error's own size counts a little, however few rows hear it."""


class LowRankFit(Protocol):
    """Makes terms of one kind. Built from its options once per run; holds no state between linears."""

    Options: ClassVar[type]
    statistics: ClassVar[Mapping[str, StatisticKind]]

    def __init__(self, options: Any) -> None: ...

    def rank(self, module: str, shape: tuple[int, int]) -> int:
        """Of the term of a linear [rows, columns]; 0: it is left alone. ConfigError naming it for a senseless one."""

    @property
    def bits(self) -> int:
        """Of a number of its two matrices: 16 or 8."""

    def term(self, where: str, error: torch.Tensor, rank: int, statistics: Mapping[str, Statistic]) -> LowRank:
        """The term that makes up for fp32 ``error`` [rows, columns] best, as this kind counts."""

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Greatest extra memory, statistics and the error not counted."""

    def work(self, shape: tuple[int, int]) -> float:
        """Predicted seconds, see units.py."""


class RepairOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``rank``: of the term beside every linear that lost something; 0 (in a rule): without one. ``bits``: of a number
    of its two matrices, 8 (integers with a scale, as LQER has them: half the bytes, or twice the rank) or 16 (bf16)."""

    rank: int = 16
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"rank of a repair step is {self.rank}; accepted is 0 or more")


class FactoriseOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``share``: how many of a weight's numbers its two narrow matrices have, above 0 and below 1; 1 (in a rule): the
    module is left alone. ``rank``: instead of it, the rank itself."""

    share: float = 0.5
    rank: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share of a factorise step is {self.share}; accepted is above 0 and at most 1")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank of a factorise step is {self.rank}; accepted is 1 or more")


class Closest:
    """What the algorithms share: the closest term under a factor of the error's cost, and what it takes."""

    statistics: ClassVar[Mapping[str, StatisticKind]] = {}

    def __init__(self, options: Any) -> None:
        self._options = options

    def rank(self, module: str, shape: tuple[int, int]) -> int:
        """See LowRankFit.rank."""
        return wanted_rank(module, shape, self._options)

    @property
    def bits(self) -> int:
        """See LowRankFit.bits."""
        bits: int = getattr(self._options, "bits", 16)
        return bits

    def cost_factor(self, where: str, statistics: Mapping[str, Statistic]) -> torch.Tensor | None:
        """L: a factor for each column, fp32 [columns], or a matrix [columns, columns]; None: all columns are alike."""
        return None

    def term(self, where: str, error: torch.Tensor, rank: int, statistics: Mapping[str, Statistic]) -> LowRank:
        """See LowRankFit.term."""
        return closest_term(error, rank, self.cost_factor(where, statistics), self.bits)

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """The weighed error, the product of its smaller side with itself and its vectors, in fp64; a factor of H."""
        rows, columns = shape
        return 8 * (2 * rows * columns + 3 * min(shape) ** 2) + 4 * 3 * columns**2

    def work(self, shape: tuple[int, int]) -> float:
        """One product with H's factor, one of the weighed error with itself, the eigenvectors."""
        rows, columns = shape
        small = min(shape)
        products = 2.0 * rows * columns**2 + 2.0 * rows * columns * small + 2.0 * EIGENVECTORS * small**3
        return 2 * products * PRODUCT_S


def wanted_rank(module: str, shape: tuple[int, int], options: RepairOptions | FactoriseOptions) -> int:
    """The rank that options mean for a linear [rows, columns]; 0: none.

    ConfigError, naming it, for one beyond the weight's own, or in the weight's place beyond the break-even.
    """
    if isinstance(options, RepairOptions):
        if options.rank > min(shape):
            raise ConfigError(f"{module}: rank is {options.rank}; accepted is 0 to {min(shape)}, its smaller side")
        return options.rank
    even = break_even(shape)
    if options.rank is None:
        return 0 if options.share == 1 else max(1, int(even * options.share))
    if options.rank >= even:
        raise ConfigError(
            f"{module}: two matrices of rank {options.rank} hold no fewer numbers than its {shape[0]} x {shape[1]}; "
            f"accepted is a rank below {even:.1f}, or share: 1 in a rule, which leaves it alone"
        )
    return options.rank


def closest_term(error: torch.Tensor, rank: int, factor: torch.Tensor | None, bits: int = 16) -> LowRank:
    """The term of ``rank`` with the least |(error - up down) L|^2; ``factor`` as ``Closest.cost_factor`` gives it.

    ``up`` is rounded first; ``down`` is then the best one for it, and rounded.
    """
    exact = error.double()
    if factor is None:
        weighed = exact
    else:
        weighed = exact * factor.double() if factor.ndim == 1 else (error @ factor).double()
    tall = error.shape[0] > error.shape[1]
    small = (weighed.T @ weighed if tall else weighed @ weighed.T).numpy()
    last = len(small) - 1
    _, vectors = eigh(small, subset_by_index=(last - rank + 1, last), overwrite_a=True, check_finite=False)
    leading = torch.from_numpy(vectors[:, ::-1].copy())  # the leading one first
    if tall:  # those of the columns' side: the rows' are what the matrix makes of them
        leading = torch.nn.functional.normalize(weighed @ leading, dim=0)
    up = _rounded(leading, UP_INT8 if bits == 8 else None)
    down = torch.linalg.lstsq(torch.from_numpy(plain(up)).double(), exact).solution
    return LowRank(up, _rounded(down, DOWN_INT8 if bits == 8 else None))


def _rounded(values: torch.Tensor, scheme: LinearScheme | None) -> np.ndarray | PackedWeight:
    """bf16, or codes in a scheme."""
    if scheme is None:
        return values.numpy().astype(BF16)
    return quantize_weight(values.float().numpy(), scheme)


def hessian_factor(where: str, statistics: Mapping[str, Statistic], damping: float) -> torch.Tensor:
    """L, fp32 [columns, columns], with L L^T the damped H; shared by the linears that read one value.

    ``damping`` grows tenfold on each failure. CheckpointError, naming ``where``: it cannot be factorised, or an
    activation was NaN or infinite.
    """
    hessian = statistics["hessian"]
    assert isinstance(hessian, Hessian)

    def factorised() -> torch.Tensor:
        matrix = hessian.matrix(where)
        _, mean = fill_dead(matrix)
        diagonal = torch.diagonal(matrix).clone()
        for power in range(_DAMPING_STEPS):
            torch.diagonal(matrix).copy_(diagonal + damping * 10**power * mean)
            lower: torch.Tensor
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if int(failed) == 0:
                return lower
        raise CheckpointError(f"{where}: the Hessian cannot be factorised even when damped")

    return hessian.derived(("cholesky", damping), factorised)
