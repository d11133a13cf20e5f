# SPDX-License-Identifier: Apache-2.0
"""How long answers have been, by tenant: what the length of the next one is guessed by."""

from collections import deque
from statistics import fmean

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
