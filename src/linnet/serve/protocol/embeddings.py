# SPDX-License-Identifier: Apache-2.0
"""POST /v1/embeddings."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from linnet.serve.protocol.common import Integer
from linnet.serve.protocol.record import Record
from linnet.settings import Pooling


class EmbeddingRequest(Record):
    """``input``: a text, token ids, or a list of either. ``dimensions``: the first so many numbers of each one."""

    stream: ClassVar[bool] = False
    include_usage: ClassVar[bool] = False

    model: str = Field(max_length=4096)
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = Field(default=None, ge=1)

    # Linnet's own, and as in vLLM.
    pooling: Pooling | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=1024)
    priority: Integer | None = Field(default=None, ge=-(1 << 31), le=(1 << 31) - 1)
    timeout_s: float | None = None

    # Accepted and without effect.
    user: str | None = None
