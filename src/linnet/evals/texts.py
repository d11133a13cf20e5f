# SPDX-License-Identifier: Apache-2.0
"""What text loss is measured on: documents that somebody gave, or documents that the original wrote itself."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from linnet.api import LLM
from linnet.evals.text_loss import Windows, document_windows
from linnet.text import OwnText

DEFAULT_TOKENS = 16384


class Text(Protocol):
    """Something to measure on. ``name`` is what the report calls it."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    def cut(self, llm: LLM, context: int, stride: int, max_tokens: int | None) -> Windows:
        """Windows of the documents as ``llm`` reads them."""
        ...


@dataclass(frozen=True)
class EvaluationText:
    """Documents to measure on, each on its own; ``name`` is what the report calls them."""

    name: str
    documents: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the documents, a zero byte between two."""
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()

    def cut(self, llm: LLM, context: int, stride: int, max_tokens: int | None) -> Windows:
        """Windows of the documents as ``llm`` reads them."""
        tokens = [llm.tokenizer.encode(document) for document in self.documents]
        return document_windows(tokens, context, stride, max_tokens)


class OwnEvaluationText:
    """Documents that the original (``author``) writes: KL on them is the expected loss under its own distribution.

    ``write``: (rows, tokens in each) -> its text; called when it is known how long windows are, after everything that
    can be refused earlier. What stands before the first token it wrote does not count. Its perplexity on them is
    about the exponential of its own entropy, which says nothing of how good the model is: such perplexities do not
    compare between models.
    """

    def __init__(self, author: str, write: Callable[[int, int], OwnText]) -> None:
        self._author, self._write = author, write
        self._text: OwnText | None = None

    @property
    def name(self) -> str:
        """With who wrote it. Known once it has been cut."""
        assert self._text is not None
        return self._text.name(self._author)

    @property
    def sha256(self) -> str:
        """Of token ids, not of characters. Known once it has been cut."""
        assert self._text is not None
        return self._text.digest

    def cut(self, llm: LLM, context: int, stride: int, max_tokens: int | None) -> Windows:
        """The documents' ids as they were written; ``llm`` must share the author's tokenizer."""
        wanted = DEFAULT_TOKENS if max_tokens is None else max_tokens
        document_windows([(0,) * 2], context, stride, wanted)  # refuses what cannot be cut before anything is written
        self._text = self._write(max(1, math.ceil(wanted / context)), context)
        documents = self._text.documents
        given = [document.given for document in documents]
        return document_windows([document.token_ids for document in documents], context, stride, max_tokens, given)
