# SPDX-License-Identifier: Apache-2.0
"""Adapters as the native operation reads them: panels of sixteen outputs, kept alive while they are known."""

from collections.abc import Mapping
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


class AdapterTable:
    """What one executor knows of adapters. ``places``: op name -> its native operation and site."""

    def __init__(self, executor: Any, places: Mapping[str, tuple[int, int]]) -> None:
        self._executor, self._places = executor, places
        self._known: dict[int, list[tuple[str, Array, Array]]] = {}

    def set(self, adapter: int, terms: Mapping[str, LowRank] | None) -> None:
        """See Executable.set_adapter. What was known of it before is forgotten."""
        for name, _, _ in self._known.pop(adapter, ()):
            self._executor.clear_adapter(*self._places[name], adapter)
        if terms is None:
            return
        known = self._known[adapter] = []
        for name, term in terms.items():
            same = term.down.dtype == term.up.dtype
            down, up = (panels(part if same else part.astype(np.float32)) for part in (term.down, term.up))
            known.append((name, down, up))
            self._executor.set_adapter(
                *self._places[name],
                adapter,
                down,
                up,
                same and term.down.dtype == ml_dtypes.bfloat16,
                term.rank,
                term.down.shape[1],
                term.up.shape[0],
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
