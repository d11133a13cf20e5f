# SPDX-License-Identifier: Apache-2.0
"""Text that a model wrote itself, as token ids: what calibration and evaluation read where no text is given.

Ids and not characters, so that special tokens survive and nothing depends on how the text would be cut into tokens
again. Its documents fill rows of one length without a gap, in order: calibration reads the rows, evaluation the
documents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from linnet.text.rows import CalibrationRows, packed_rows

REPEATING_TOKENS, REPEATING_KINDS = 64, 4
"""A stretch of so many tokens with at most so many different ones says nothing any more."""


@dataclass(frozen=True)
class OwnDocument:
    """``given``: how many tokens at the start the model did not write (the opening token, a template's frame)."""

    token_ids: tuple[int, ...]
    given: int


@dataclass(frozen=True)
class OwnText:
    """``documents`` fill rows of ``length`` tokens; with ``chats``, every second row through the chat template.

    ``cut``: documents that ended in a repetition and were cut where it began.
    """

    documents: tuple[OwnDocument, ...]
    length: int
    seed: int
    chats: bool
    cut: int

    def name(self, author: str = "model") -> str:
        """What reports call it."""
        kinds = "every second row a chat" if self.chats else "no chats"
        cut = f", {self.cut} document(s) cut where they only repeated themselves" if self.cut else ""
        return f"the {author}'s own text ({kinds}, seed {self.seed}{cut})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over row length, documents and what of them was given."""
        found = hashlib.sha256(f"linnet-own-text-1 {self.length}\n".encode())
        for document in self.documents:
            found.update(f"{len(document.token_ids)} {document.given}\n".encode())
            found.update(np.asarray(document.token_ids, "<i4").tobytes())
        return found.hexdigest()

    def rows(self) -> CalibrationRows:
        """The documents as rows of ``length`` tokens, each read without the others."""
        documents = [document.token_ids for document in self.documents]
        return packed_rows(documents, sum(map(len, documents)) // self.length, self.length, self.name())


def repetition_start(token_ids: Sequence[int]) -> int | None:
    """Where the first stretch begins that only repeats a few tokens; None if there is none."""
    counts: dict[int, int] = {}
    for place, token_id in enumerate(token_ids):
        counts[token_id] = counts.get(token_id, 0) + 1
        if place >= REPEATING_TOKENS:
            leaving = token_ids[place - REPEATING_TOKENS]
            counts[leaving] -= 1
            if not counts[leaving]:
                del counts[leaving]
        if place >= REPEATING_TOKENS - 1 and len(counts) <= REPEATING_KINDS:
            return place - REPEATING_TOKENS + 1
    return None
