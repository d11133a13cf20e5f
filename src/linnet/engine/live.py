# SPDX-License-Identifier: Apache-2.0
"""What the engine remembers about an unfinished request besides the scheduler's counters."""

from dataclasses import dataclass, field

import numpy as np

from linnet.engine.beams import BeamGroup
from linnet.engine.matching import Matching
from linnet.engine.messages import PromptScores, Submit
from linnet.scheduler import Request


@dataclass(slots=True)
class PromptScoreRows:
    """Prompt scores as they come, one row per scored prompt row; preemption never delivers a row twice."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, rows: np.ndarray) -> None:
        """Append rows (copied: executables may reuse what they return)."""
        self.parts.setdefault(name, []).append(np.array(rows))

    def result(self) -> PromptScores:
        """All rows in order; empty arrays for a prompt of one token."""
        whole = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        whole.setdefault("logprobs", np.zeros(0, np.float32))
        whole.setdefault("greedy", np.zeros(0, np.int32))
        whole.setdefault("ranks", np.zeros(0, np.int32))
        return PromptScores(**whole)


class PooledRows:
    """The embedding of one request, of rows as they come, in order, none twice: their mean, or the ``first`` of them.

    Sums are fp64 and made row after row, so it does not matter in which pieces the rows come.
    """

    def __init__(self, first: bool = False) -> None:
        self._first = first
        self._sum: np.ndarray | None = None
        self._rows = 0

    def add(self, rows: np.ndarray) -> None:
        """float32 [n, width]."""
        if self._sum is None:
            self._sum = np.zeros(rows.shape[1], np.float64)
        for row in rows[: 1 - self._rows] if self._first else rows:
            np.add(self._sum, row, out=self._sum)
            self._rows += 1

    def result(self) -> np.ndarray:
        """The mean, float32; of one row the row itself."""
        assert self._sum is not None, "a prompt has at least one row"
        return (self._sum / self._rows).astype(np.float32)


@dataclass(slots=True)
class LiveRequest:
    """One unfinished request."""

    submit: Submit
    request: Request
    matching: Matching | None = None
    scores: PromptScoreRows | None = None
    beams: BeamGroup | None = None
    pooled: PooledRows | None = None
