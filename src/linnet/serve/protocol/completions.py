# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from linnet.serve.protocol.common import GenerationRequest, Integer
from linnet.serve.protocol.neutral import NEUTRAL

MAX_TOKENS = 16
"""OpenAI's default for completions."""


class CompletionRequest(GenerationRequest):
    """``prompt``: a text, token ids, or a list of either. ``max_completion_tokens`` is the newer name of ``max_tokens``
    and wins. ``best_of``: so many samples, of which the n likeliest are returned."""

    REFUSED: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        **NEUTRAL,
        "tools": (([],), "use /v1/chat/completions"),
        "tool_choice": (("none", "auto"), "use /v1/chat/completions"),
        "include_reasoning": ((True,), "what the model writes is returned as it is"),
        "suffix": (("",), "no model here has been trained to fill in the middle"),
    }

    prompt: Any
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    logprobs: Integer | None = None
    best_of: Integer | None = None
    echo: bool | None = None
