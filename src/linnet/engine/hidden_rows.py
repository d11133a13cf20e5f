# SPDX-License-Identifier: Apache-2.0
"""Rows that yield hidden states: what `Hidden` of a plan asks the backend for."""

from linnet.backends.interface import Executable
from linnet.engine.live import LiveRequest
from linnet.scheduler import Hidden


class HiddenRows:
    """The rows of one step whose hidden states are wanted: ``want`` each use, then ``read`` them all."""

    def __init__(self, value: str | None) -> None:
        """``value``: where the backend keeps them (``Executable.tap``)."""
        self._value = value
        self._wanted: list[tuple[LiveRequest, slice]] = []

    def want(self, one: LiveRequest, use: Hidden, row: int) -> None:
        """The hidden states at output rows ``row`` ..."""
        self._wanted.append((one, slice(row, row + use.rows)))

    def read(self, executable: Executable) -> None:
        """Add to each request's embedding and forget what was wanted."""
        wanted, self._wanted = self._wanted, []
        if not wanted:
            return
        assert self._value is not None, "who asks was validated"
        states = executable.tap(self._value)
        for one, rows in wanted:
            assert one.pooled is not None, "who is embedded has a place for it"
            one.pooled.add(states[rows])
