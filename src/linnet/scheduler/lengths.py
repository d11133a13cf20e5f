# SPDX-License-Identifier: Apache-2.0
"""How long answers have been, by tenant: what the length of the next one is guessed by."""

from collections import deque
from statistics import fmean

from .config import Lengths
from .request import Request

MOST_TENANTS = 4096
"""Tenants that are remembered although they have no requests here."""


class AnswerLengths:
    """The last OWN answers of each of the last MOST_TENANTS tenants, and the last EVERYBODY ones of all.

    At most 4096 · 16 small integers: some megabytes, whatever comes.
    """

    OWN = 16
    EVERYBODY = 64

    def __init__(self) -> None:
        self._everybody: deque[int] = deque(maxlen=self.EVERYBODY)
        self._own: dict[bytes, deque[int]] = {}  # who was heard of latest stands last

    def __len__(self) -> int:
        """How many tenants are remembered."""
        return len(self._own)

    def expect(self, tenant: bytes) -> float | None:
        """Tokens of the tenant's next answer: the mean of its own mean and everybody's; None before the first answer.

        Mutates nothing.
        """
        means = [fmean(lengths) for lengths in (self._own.get(tenant), self._everybody) if lengths]
        return fmean(means) if means else None

    def learn(self, tenant: bytes, tokens: int) -> None:
        """An answer came to its end. Forgets the tenant that was silent the longest if there are too many."""
        self._everybody.append(tokens)
        own = self._own.pop(tenant, None) or deque(maxlen=self.OWN)
        own.append(tokens)
        self._own[tenant] = own
        if len(self._own) > MOST_TENANTS:
            del self._own[next(iter(self._own))]

    def ended(self, request: Request) -> None:
        """Learn from an answer that came to its end; beams of a search are none, they end when the search does."""
        own = request.gang is None and request.max_new_tokens > 0
        if own and request.finish_reason in ("stop", "length"):
            self.learn(request.tenant, request.generated_tokens)


class PredictedLengths:
    """How long the answers of unfinished requests are taken to be, in tokens.

    As long as past answers let expect and no longer than allowed ('past'), or as long as allowed ('limit'). One that
    goes on is predicted to double.
    """

    def __init__(self, lengths: Lengths) -> None:
        self._past = AnswerLengths() if lengths == "past" else None
        self._predicted: dict[int, float] = {}

    def added(self, request: Request) -> None:
        """A request has come: predict."""
        predicted = None if self._past is None else self._past.expect(request.tenant)
        allowed = request.max_new_tokens
        self._predicted[request.request_id] = allowed if predicted is None else min(predicted, allowed)

    def of(self, request: Request) -> float:
        """Tokens of its answer, those that it has included. Mutates nothing."""
        return self._predicted[request.request_id]

    def served(self, request: Request) -> None:
        """It may have got tokens."""
        if request.generated_tokens >= self._predicted[request.request_id]:
            self._predicted[request.request_id] = min(2 * request.generated_tokens, request.max_new_tokens)

    def ended(self, request: Request) -> None:
        """It has gone; learn from it."""
        del self._predicted[request.request_id]
        if self._past is not None:
            self._past.ended(request)
