# SPDX-License-Identifier: Apache-2.0
"""Adapters as the native operation reads them: panels of sixteen outputs, kept alive while they are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.backends.interface import LowRank
from linnet.errors import ConfigError
from linnet.program.adapters import PANEL

Array = npt.NDArray[Any]


def panels(matrix: Array) -> Array:
    """[outputs, columns] -> flat bytes of [outputs / PANEL, columns, PANEL], zeros behind the last output; bf16 stays
    bf16, everything else becomes fp32."""
    rows, columns = matrix.shape
    kept = matrix.dtype if matrix.dtype == ml_dtypes.bfloat16 else np.dtype(np.float32)
    padded = np.zeros((-(-rows // PANEL) * PANEL, columns), kept)
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(-1, PANEL, columns).transpose(0, 2, 1)).reshape(-1).view(np.uint8)


@dataclass(frozen=True, slots=True)
class PackedTerm:
    """What an adapter adds at one site. ``down``, ``up``: panels, both of bf16 or of fp32; sizes in elements."""

    down: Array
    up: Array
    is_bf16: bool
    rank: int
    columns: int
    outputs: int
    factor: float


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter as the operation reads it, by name of an op."""

    terms: Mapping[str, PackedTerm]


def packed(terms: Mapping[str, LowRank]) -> PackedAdapter:
    """All matrices as panels, in memory of their own."""
    made = {}
    for name, term in terms.items():
        same = term.down.dtype == term.up.dtype
        down, up = (panels(part if same else part.astype(np.float32)) for part in (term.down, term.up))
        is_bf16 = same and term.down.dtype == ml_dtypes.bfloat16
        made[name] = PackedTerm(down, up, is_bf16, term.rank, term.down.shape[1], term.up.shape[0], term.factor)
    return PackedAdapter(made)


class AdapterTable:
    """What one executor knows of adapters. ``places``: op name -> its native operation and site."""

    def __init__(self, executor: Any, places: Mapping[str, tuple[int, int]]) -> None:
        self._executor, self._places = executor, places
        self._known: dict[int, PackedAdapter] = {}

    def set(self, adapter: int, given: PackedAdapter | None) -> None:
        """See Executable.set_adapter. What was known of it before is forgotten."""
        before = self._known.pop(adapter, None)
        for name in before.terms if before is not None else ():
            self._executor.clear_adapter(*self._places[name], adapter)
        if given is None:
            return
        self._known[adapter] = given
        for name, term in given.terms.items():
            self._executor.set_adapter(
                *self._places[name],
                adapter,
                term.down,
                term.up,
                term.is_bf16,
                term.rank,
                term.columns,
                term.outputs,
                term.factor,
            )

    def of_rows(self, adapters: Array) -> Array | None:
        """What a step is told of its rows: their adapters, if any has one. ConfigError for one that is not known."""
        if not adapters.size:
            return None
        unknown = set(adapters.tolist()) - self._known.keys() - {-1}
        if unknown:
            raise ConfigError(f"batch.adapters names {min(unknown)}, which was not given")
        return adapters
