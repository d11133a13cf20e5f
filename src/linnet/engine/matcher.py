# SPDX-License-Identifier: Apache-2.0
"""The seam for structured output: who may say which tokens come next. Grammars come later; the door is here."""

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Matcher(Protocol):
    """The state of one request's grammar. Exceptions end this request only."""

    def fill(self, allowed: np.ndarray) -> None:
        """Set the bits of the tokens that may come next in ``allowed``, uint32 [ceil(vocabulary / 32)], zeroed.

        Bit id % 32 of word id // 32. Called once per sampled token.
        """

    def accept(self, token_id: int) -> None:
        """The token was chosen."""


class Grammar(Protocol):
    """A compiled grammar, shared by every request that asks for it; from any thread."""

    def matcher(self) -> Matcher:
        """A fresh state, at its beginning. Cheap: the engine's thread calls it."""


CompileGrammar = Callable[[str], Grammar]
"""Makes a grammar of its description; raises ConfigError for one it does not understand. May take long: never called
on the engine's thread."""


def mask_words(vocabulary: int) -> int:
    """How many uint32 words a bit mask over the vocabulary has."""
    return -(-vocabulary // 32)
