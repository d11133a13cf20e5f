# SPDX-License-Identifier: Apache-2.0
"""Weighted k-means in one dimension, every row of a weight by itself.

Lloyd 1982: values to their nearest centre, centres to the weighted mean of their values. A row is sorted once; a
cluster is then a run of it, and its mass and sum are differences of prefix sums, so that an iteration costs what
finding the borders costs.
"""

from collections.abc import Iterator

import torch

ITERATIONS = 100
ROWS = 256
"""At a time: sums are fp64."""
_LEAST = 1e-6
"""Of the mean weight: what nobody hears still has a place."""


def cluster_rows(
    values: torch.Tensor, importance: torch.Tensor | None, bits: int, apart: torch.Tensor | None = None
) -> torch.Tensor:
    """fp32 [rows, 2 ** bits], ascending: the centres of each row of fp32 ``values`` [rows, columns].

    ``importance`` [columns]: what a squared error of each column costs; None: all alike. The sum of cost * error^2 is
    no greater than that of a uniform grid over the row, symmetric or from its least to its greatest value: these are
    among the starts, of which the best end counts. What stands ``apart``, bool as the values, is as if it were not
    there.
    """
    cost = torch.ones(values.shape[1]) if importance is None else importance
    cost = cost.double().clamp(min=float(cost.double().mean()) * _LEAST)
    cost = cost if float(cost.max()) > 0 else torch.ones_like(cost)
    starts = range(0, len(values), ROWS)
    parts = (slice(start, start + ROWS) for start in starts)
    return torch.cat([_cluster(values[part], cost, 2**bits, None if apart is None else apart[part]) for part in parts])


def nearest(values: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns]: which of its row's ascending ``centres`` is nearest to each value."""
    middles = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles, values.contiguous()).to(torch.uint8)


def _cluster(values: torch.Tensor, cost: torch.Tensor, count: int, apart: torch.Tensor | None) -> torch.Tensor:
    own = values.double() if apart is None else values.double().masked_fill_(apart, 0.0)
    row, order = own.sort(dim=1)
    mass = cost[order]
    if apart is not None:
        mass.masked_fill_(apart.gather(1, order), 0.0)
    sums = [torch.nn.functional.pad(each.cumsum(dim=1), (1, 0)) for each in (mass, mass * row, mass * row * row)]
    best, least = None, None
    for start in _starts(row, mass, count):
        centres = _lloyd(row, sums, start)
        error = _error(row, sums, centres)
        if best is None or least is None:
            best, least = centres, error
        better = error < least
        best, least = torch.where(better[:, None], centres, best), torch.minimum(error, least)
    assert best is not None
    return best.float()


def _starts(row: torch.Tensor, mass: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """The grids of round-to-nearest, quantiles of the mass, and those of its density's cube root: where many centres
    stand that leave the least squared error (Panter and Dite 1951)."""
    steps = torch.arange(count, dtype=torch.float64)
    least, greatest = row[:, :1], row[:, -1:]
    yield row.abs().amax(dim=1, keepdim=True) / ((count - 1) / 2) * (steps - count // 2)
    yield least + (greatest - least) * steps / (count - 1)
    gaps = torch.nn.functional.pad(row.diff(dim=1), (0, 1))
    for density in (mass, mass.pow(1 / 3) * gaps.pow(2 / 3)):
        filled = density.cumsum(dim=1)
        places = torch.searchsorted(filled, (filled[:, -1:] * (steps + 0.5) / count).contiguous())
        yield row.gather(1, places.clamp(max=row.shape[1] - 1))


def _lloyd(row: torch.Tensor, sums: list[torch.Tensor], centres: torch.Tensor) -> torch.Tensor:
    for _ in range(ITERATIONS):
        mass, total, _ = _of_clusters(row, sums, centres)
        moved = torch.where(mass > 0, total / mass.clamp(min=1e-300), centres)  # an empty one stays where it is
        moved = moved.sort(dim=1).values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _of_clusters(row: torch.Tensor, sums: list[torch.Tensor], centres: torch.Tensor) -> list[torch.Tensor]:
    """Mass, sum and sum of squares of what lies nearest to each centre, [rows, centres]."""
    borders = torch.searchsorted(row, ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous())
    first = torch.zeros(len(row), 1, dtype=torch.int64)
    borders = torch.cat([first, borders, first + row.shape[1]], dim=1)
    return [each.gather(1, borders).diff(dim=1) for each in sums]


def _error(row: torch.Tensor, sums: list[torch.Tensor], centres: torch.Tensor) -> torch.Tensor:
    mass, total, squares = _of_clusters(row, sums, centres)
    return (squares - 2 * centres * total + centres.square() * mass).sum(dim=1)
