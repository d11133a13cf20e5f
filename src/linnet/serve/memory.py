# SPDX-License-Identifier: Apache-2.0
"""What a server has taken of memory, beside what was predicted: the prediction is looked at while it is in use."""

import logging
from collections.abc import Callable

from linnet.process_memory import Footprint, peak_bytes

logger = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Predictions are right within that; beyond it the log says so, once."""


class MemoryUse:
    """``process_id``: that of the engine's own process; None where it is a thread of this one, or between two."""

    def __init__(self, predicted: Footprint, process_id: Callable[[], int | None]) -> None:
        self.predicted = predicted
        self._process_id = process_id
        self._most = 0
        self._told = False

    def peak_bytes(self) -> int:
        """The most there has been, of all processes together, of engines that have ended too."""
        engine = self._process_id()
        self._most = max(self._most, peak_bytes() + (0 if engine is None else peak_bytes(engine)))
        return self._most

    def look(self) -> None:
        """Warn if more was taken than was predicted; it happens once."""
        most = self.peak_bytes()
        if not self._told and most > (1 + TOLERANCE) * self.predicted.total_bytes:
            self._told = True
            logger.warning(
                "memory in use has reached %d MiB; %d MiB were predicted", most >> 20, self.predicted.total_bytes >> 20
            )

    def sentence(self) -> str:
        """For the end."""
        return f"peak memory {self.peak_bytes() >> 20:,} MiB of {self.predicted.total_bytes >> 20:,} MiB predicted"
