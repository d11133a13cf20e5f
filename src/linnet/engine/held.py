# SPDX-License-Identifier: Apache-2.0
"""Requests that have been taken and wait for their adapter to be loaded; to the scheduler they have not come yet."""

from collections.abc import Iterator

from linnet.engine.adapters import EngineAdapters
from linnet.engine.messages import EngineEvent, Finished, Submit

LONGEST_WAIT_S = 0.005
"""That a step without anything else to do waits for an adapter: messages are not read meanwhile."""


class HeldRequests:
    """In the order in which they came. Each counts as a user of its adapter, so that this stays."""

    def __init__(self, adapters: EngineAdapters) -> None:
        self._adapters = adapters
        self._waiting: dict[int, tuple[Submit, float]] = {}
        self._events: list[EngineEvent] = []

    def __len__(self) -> int:
        """How many there are something to be told of."""
        return len(self._waiting) + len(self._events)

    def __iter__(self) -> Iterator[int]:
        """Ids of those that wait."""
        return iter(self._waiting)

    def add(self, submit: Submit, arrival_s: float) -> None:
        """Another one. Raises UnknownAdapterError for an adapter that is to be unloaded."""
        self._adapters.hold(submit.adapter)
        self._waiting[submit.request_id] = submit, arrival_s

    def abort(self, request_id: int) -> bool:
        """End one; False where it does not wait here. Its Finished is among the next events."""
        if request_id not in self._waiting:
            return False
        self._adapters.let_go(self._waiting.pop(request_id)[0].adapter)
        self._events.append(Finished(request_id, "abort"))
        return True

    def wait(self) -> None:
        """Give the adapter that comes next a moment."""
        if self._waiting:
            self._adapters.wait(LONGEST_WAIT_S)

    def released(self, now: float) -> Iterator[tuple[Submit, float]]:
        """Those whose adapter is there, or could not be loaded: they let go of it when the next one is asked for, so
        that it cannot leave before they use it otherwise. Those whose time has passed are ended."""
        for request_id, (submit, arrival_s) in list(self._waiting.items()):
            late = submit.timeout_s is not None and now >= arrival_s + submit.timeout_s
            if self._adapters.is_coming(submit.adapter) and not late:
                continue
            del self._waiting[request_id]
            if late:
                self._events.append(Finished(request_id, "queue_timeout"))
            else:
                yield submit, arrival_s
            self._adapters.let_go(submit.adapter)

    def take_events(self) -> tuple[EngineEvent, ...]:
        """What became of those that are not released, since the last call."""
        events, self._events = tuple(self._events), []
        return events
