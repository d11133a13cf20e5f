# SPDX-License-Identifier: Apache-2.0
"""Which unfinished requests have run out of time. Entries of finished ones do not pile up, however far they are."""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from .request import Request

SLACK = 64


class Deadlines:
    """A heap over `requests`, the scheduler's table of unfinished requests (read, never written)."""

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Watch an added request that has a deadline. Mutates this heap only."""
        if request.deadline_s is None:
            return
        if len(self._heap) > 2 * len(self._requests) + SLACK:
            self._heap = [entry for entry in self._heap if self._unfinished(entry)]
            heapify(self._heap)
        heappush(self._heap, (request.deadline_s, request.sequence, request.request_id))

    def pop_due(self, now: float) -> Iterator[int]:
        """Ids of unfinished requests whose deadline has passed, each once. Mutates this heap only."""
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)
            if self._unfinished(entry):
                yield entry[2]

    def _unfinished(self, entry: tuple[float, int, int]) -> bool:
        request = self._requests.get(entry[2])
        return request is not None and request.sequence == entry[1]
