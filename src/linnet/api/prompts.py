# SPDX-License-Identifier: Apache-2.0
"""What users may pass as prompts, rows and messages, turned into lists of token ids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.engine import ParameterError, SamplingParams
from linnet.text import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """Text (None for token-id prompts) and token ids, of which so many first ones are a prompt module's."""

    text: str | None
    token_ids: tuple[int, ...]
    shared_tokens: int = 0


def is_token_ids(value: Any) -> bool:
    """Whether this is one prompt of token ids (and not a list of prompts)."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (int, np.integer))


def prepare_prompts(prompts: Prompt | Sequence[Prompt], tokenizer: Tokenizer) -> list[PreparedPrompt]:
    """One prompt or many, each a text or token ids. Raises ParameterError."""
    return [prepare_prompt(prompt, tokenizer) for prompt in plain_prompts(prompts)]


def plain_prompts(prompts: Prompt | Sequence[Prompt]) -> list[str | tuple[int, ...]]:
    """The same as texts and plain token ids."""
    if isinstance(prompts, str) or is_token_ids(prompts):
        return [_plain(prompts)]
    if isinstance(prompts, Mapping) or not hasattr(prompts, "__iter__"):
        raise ParameterError(
            "prompt", f"prompts are {type(prompts).__name__}; accepted are a text, token ids, or a list of either"
        )
    return [_plain(prompt) for prompt in prompts]


def _plain(prompt: Any) -> str | tuple[int, ...]:
    return prompt if isinstance(prompt, str) else token_row(prompt)


def prepare_prompt(prompt: Prompt, tokenizer: Tokenizer) -> PreparedPrompt:
    """A text is encoded with the special tokens its post-processor adds; token ids are taken as they are."""
    if isinstance(prompt, str):
        return PreparedPrompt(prompt, tuple(tokenizer.encode(prompt)))
    return PreparedPrompt(None, token_row(prompt))


def token_row(row: Any) -> tuple[int, ...]:
    """Token ids as plain integers. Raises ParameterError for anything else."""
    if isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in "iu":
        return tuple(row.tolist())
    if isinstance(row, (list, tuple)) and all(
        isinstance(token, (int, np.integer)) and not isinstance(token, bool) for token in row
    ):
        return tuple(int(token) for token in row)
    raise ParameterError("prompt", f"a prompt is {type(row).__name__}; accepted are a text or a list of token ids")


def prepare_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: Callable[[], SamplingParams]
) -> list[SamplingParams]:
    """One for all or one each; ``default`` for all when there are none."""
    if params is None:
        return [default()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count or not all(isinstance(entry, SamplingParams) for entry in params):
        raise ParameterError(
            "params", f"{len(params)} sampling parameters for {count} prompts; give one for all or one for each"
        )
    return list(params)


def is_conversation(messages: Any) -> bool:
    """Whether this is one list of messages (and not a list of conversations)."""
    return isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], Mapping)
