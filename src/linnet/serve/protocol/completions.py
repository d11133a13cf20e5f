# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from linnet.serve.protocol.common import GenerationRequest

MAX_TOKENS = 16
"""OpenAI's default for completions."""


class CompletionRequest(GenerationRequest):
    """``prompt``: a text, token ids, or a list of either."""

    REFUSED: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "suffix": (("",), "no model here has been trained to fill in the middle"),
        "best_of": ((), "choose among n answers yourself, with logprobs"),
        "prompt_logprobs": ((), "use echo with logprobs"),
    }

    prompt: Any
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
