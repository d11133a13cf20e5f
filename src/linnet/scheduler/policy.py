# SPDX-License-Identifier: Apache-2.0
"""The order of requests: one key per policy, and a list that is always in that order.

Waiting and running requests are kept in the same order, so the last running request is always the one to preempt, and
a preempted request goes back before everyone who came after it without a rule of its own.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from .config import Policy
from .invariants import InvariantError
from .request import Request

OrderingKey = Callable[[Request], tuple[float, ...]]


def ordering_key(policy: Policy) -> OrderingKey:
    """The sort key of a policy; smaller goes first, and the order of add() breaks ties."""
    if policy == "priority":
        return lambda request: (request.priority, request.arrival_s, request.sequence)
    return lambda request: (request.arrival_s, request.sequence)


class OrderedRequests:
    """Requests in policy order. Keys must not change while a request is inside."""

    def __init__(self, key: OrderingKey) -> None:
        self._key = key
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __reversed__(self) -> Iterator[Request]:
        return reversed(self._requests)

    def insert(self, request: Request) -> None:
        """Put a request at its place. Mutates this list only."""
        insort(self._requests, request, key=self._key)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is. Mutates this list only."""
        index = bisect_left(self._requests, self._key(request), key=self._key)
        if index == len(self._requests) or self._requests[index] is not request:
            raise InvariantError(f"request {request.request_id} is not in this list")
        del self._requests[index]
