# SPDX-License-Identifier: Apache-2.0
"""The order of requests: what a policy is, and a list that is in its order.

Waiting and running requests are kept in the same order, so the last running request is always the one to preempt, and
a preempted request goes back before everyone who comes after it without a rule of its own.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from operator import itemgetter

from .invariants import InvariantError
from .request import Request

Key = tuple[float, ...]


class OrderingPolicy:
    """Who comes first: smaller keys do. It decides the order of computing, admission and preemption, never a token.

    moving:    keys change while requests are here; the lists are put in order again before every step.
    preempts:  a waiting request that comes before running ones takes the last one's place if there is none left.

    Keys differ in their last part, `sequence`, if in no other. The hooks say what happens; `tick` comes before each
    step is planned.
    """

    moving = False
    preempts = False

    def key(self, request: Request) -> Key:
        """The place of an added request now. Mutates nothing."""
        raise NotImplementedError

    def added(self, request: Request) -> None:
        """A request has come."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def served(self, request: Request, computed_tokens: int, new_tokens: int, now: float) -> None:
        """A step computed that many tokens of the request and gave it that many new ones."""

    def ended(self, request: Request) -> None:
        """A request has gone; `finish_reason` says why."""


class OrderedRequests:
    """Requests in policy order: in that of their keys when they were inserted, or last put in order."""

    def __init__(self, key: Callable[[Request], Key]) -> None:
        """`key`: the place of a request now; no two are the same."""
        self._key = key
        self._entries: list[tuple[Key, Request]] = []
        self._keys: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Request:
        return self._entries[index][1]

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._entries)

    def __reversed__(self) -> Iterator[Request]:
        return (request for _, request in reversed(self._entries))

    def key_of(self, request: Request) -> Key:
        """The key by which a request here has its place. Mutates nothing."""
        return self._keys[request.request_id]

    def insert(self, request: Request) -> None:
        """Put a request at its place. Mutates this list only."""
        key = self._key(request)
        self._keys[request.request_id] = key
        insort(self._entries, (key, request), key=_KEY)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is. Mutates this list only."""
        key = self._keys.get(request.request_id)
        index = len(self._entries) if key is None else bisect_left(self._entries, key, key=_KEY)
        if index == len(self._entries) or self._entries[index][1] is not request:
            raise InvariantError(f"request {request.request_id} is not in this list")
        del self._entries[index]
        del self._keys[request.request_id]

    def reorder(self) -> None:
        """Put all requests where their keys are now. Mutates this list only."""
        requests = list(self)
        self._keys = {request.request_id: self._key(request) for request in requests}
        self._entries = sorted(((self._keys[request.request_id], request) for request in requests), key=_KEY)


_KEY = itemgetter(0)
