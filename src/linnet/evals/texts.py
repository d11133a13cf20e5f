# SPDX-License-Identifier: Apache-2.0
"""What text loss is measured on: documents that somebody gave, or documents that the original wrote itself."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from linnet.api import LLM
from linnet.evals.text_loss import Windows, document_windows
from linnet.text import OwnText


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


@dataclass(frozen=True)
class OwnEvaluationText:
    """Documents that the original (``author``) wrote: KL on them is the expected loss under its own distribution.

    Only tokens it wrote count; its perplexity is about the exponential of its own entropy, so it says nothing of how
    good the model is, and perplexities of two models on texts of their own do not compare.
    """

    text: OwnText
    author: str

    @property
    def name(self) -> str:
        """With who wrote it."""
        return self.text.name(self.author)

    @property
    def sha256(self) -> str:
        """Of token ids, not of characters."""
        return self.text.digest

    def cut(self, llm: LLM, context: int, stride: int, max_tokens: int | None) -> Windows:
        """The documents' ids as they were written; ``llm`` must share the author's tokenizer."""
        documents = self.text.documents
        return document_windows(
            [document.token_ids for document in documents],
            context,
            stride,
            max_tokens,
            given=[document.given for document in documents],
        )
