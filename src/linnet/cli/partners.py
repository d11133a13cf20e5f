# SPDX-License-Identifier: Apache-2.0
"""Who a conversation is held with: a model that is open here. Another, behind a URL, is in ``remote``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.api import LLM, SamplingParams

Message = dict[str, str]
BEGIN_AGAIN = "/reset begins a new one, /save FILE keeps this one"


@dataclass(frozen=True)
class Said:
    """A piece of an answer. ended: at its end, a sentence about why it ended if that was not of itself, else empty."""

    text: str
    ended: str | None = None


class Partner(Protocol):
    """Whom a conversation is held with: each message is answered with all that was said before it."""

    def answer(self, messages: Sequence[Message], cancelled: Callable[[], bool]) -> Iterator[Said]:
        """The answer to a conversation, in pieces; it stops soon after ``cancelled`` says so. Raises ConfigError before
        the first piece for what cannot be answered."""
        ...


class LocalPartner:
    """A Partner. ``default_max_tokens``: where an answer ends if the parameters do not say it."""

    def __init__(self, llm: "LLM", params: "SamplingParams", default_max_tokens: int) -> None:
        self._llm, self._params, self._most = llm, params, default_max_tokens

    def answer(self, messages: Sequence[Message], cancelled: Callable[[], bool]) -> Iterator[Said]:
        """See Partner."""
        from linnet.api import LengthError

        llm = self._llm
        ids = llm.tokenizer.encode_chat(llm.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        most = self._params.max_tokens or self._most  # in a conversation no demand: it ends where the context is full
        params = replace(self._params, max_tokens=None)
        try:
            pieces = llm.stream(ids, params, default_max_tokens=most, cancelled=cancelled)
        except LengthError as error:
            raise ConfigError(
                f"the conversation has {error.prompt_tokens:,} tokens with this message, and the context holds "
                f"{error.most:,}: {BEGIN_AGAIN}"
            ) from None
        tokens = 0
        for piece in pieces:
            tokens += len(piece.token_ids)
            ended = None if piece.finish_reason is None else self._why(piece.finish_reason, len(ids) + tokens, most)
            yield Said(piece.text, ended)

    def _why(self, reason: str, tokens: int, most: int) -> str:
        if reason != "length":
            return ""
        if tokens == self._llm.max_model_len:
            return f"the context of {tokens:,} tokens is full: /reset begins a new conversation"
        return f"the answer was ended after {most:,} tokens (--max-tokens)"
