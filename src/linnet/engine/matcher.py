# SPDX-License-Identifier: Apache-2.0
"""Structured output as the step sees it: who may say which tokens come next.

The grammar of a request travels as text. ``Grammars`` makes it a matcher somewhere else than on the step's thread;
until that is there the request's prompt is computed, and nothing is sampled.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from linnet.engine.sampling_params import ParameterError

GRAMMAR = "structured_outputs"
"""The parameter that errors about a grammar name."""


class GrammarError(ParameterError):
    """A grammar that cannot be: not understood, too large, or nothing matches it."""

    def __init__(self, message: str) -> None:
        super().__init__(GRAMMAR, message)

    @property
    def beyond(self) -> bool:
        """Whether it may be right, and is only more than can be enforced."""
        return any(words in str(self) for words in _BEYOND)


_BEYOND = ("supported", "too complex", "takes longer", "accepted are at most")


class Matcher(Protocol):
    """The state of one request's grammar. Exceptions end this request only."""

    @property
    def ended(self) -> bool:
        """Whether nothing can follow: the text is whole, and no token would go on with it."""

    def fill(self, allowed: np.ndarray, ends: frozenset[int]) -> bool:
        """Set the bits of the tokens that may come next in ``allowed``, uint32 [ceil(vocabulary / 32)], zeroed.

        Bit id % 32 of word id // 32. Of the model's end-of-sequence ids those in ``ends`` are allowed where the text
        may end. False, and no bit, where nothing may come: then it has ``ended``.
        """

    def accept(self, token_id: int) -> None:
        """The token was chosen. One that ends the text changes nothing."""

    def rollback(self, tokens: int) -> None:
        """Forget the last so many accepted tokens, as if they had never been."""

    def copy(self) -> "Matcher":
        """Another one that is where this one is."""

    def forced(self) -> Sequence[int]:
        """A guess at the next tokens where the grammar leaves one text to go on with; empty where it does not."""


class Grammars(Protocol):
    """Where matchers come from."""

    def matcher(self, grammar: str) -> "Future[Matcher]":
        """A fresh state of the grammar, at its beginning; returns at once. The future may raise GrammarError."""


def mask_words(vocabulary: int) -> int:
    """How many uint32 words a bit mask over the vocabulary has."""
    return -(-vocabulary // 32)
