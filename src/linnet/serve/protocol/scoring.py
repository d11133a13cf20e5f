# SPDX-License-Identifier: Apache-2.0
"""POST /v1/score and /v1/rerank, as in vLLM (the latter also as at Jina and Cohere)."""

from typing import Any

from pydantic import Field

from linnet.serve.protocol.common import Integer
from linnet.serve.protocol.record import Record
from linnet.settings import Pooling


class ScoreRequest(Record):
    """How alike the texts are: one beside one, one beside each of many, or many beside as many."""

    model: str = Field(max_length=4096)
    text_1: str | list[str]
    text_2: str | list[str]
    pooling: Pooling | None = None
    cache_salt: str | None = Field(default=None, max_length=1024)
    timeout_s: float | None = None
    user: str | None = None


class RerankRequest(Record):
    """The documents by how alike they are to the query, the most alike first."""

    model: str = Field(max_length=4096)
    query: str
    documents: list[str | dict[str, Any]] = Field(min_length=1)
    top_n: Integer | None = Field(default=None, ge=0)
    return_documents: bool | None = None
    pooling: Pooling | None = None
    cache_salt: str | None = Field(default=None, max_length=1024)
    timeout_s: float | None = None
    user: str | None = None
