# SPDX-License-Identifier: Apache-2.0
"""POST /tokenize and /detokenize, as in vLLM."""

from typing import Any

from pydantic import Field

from linnet.serve.protocol.chat import Message
from linnet.serve.protocol.record import Record


class TokenizeRequest(Record):
    """``prompt`` or ``messages``, one of them."""

    model: str | None = Field(default=None, max_length=4096)
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Record):
    """Token ids to text, special tokens shown."""

    model: str | None = Field(default=None, max_length=4096)
    tokens: Any
