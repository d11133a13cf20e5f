# SPDX-License-Identifier: Apache-2.0
"""From engine events to text: one SampleStream per sample, and the records that ``LLM`` returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from linnet.api.moderation import Moderate, ask
from linnet.api.stop import StopFinder
from linnet.engine import ErrorInfo, Finished, PromptScores, SamplingParams, TokenLogprob, Tokens
from linnet.text import Tokenizer

FinishReason = Literal["stop", "length", "abort", "timeout", "queue_timeout", "error", "policy"]
"""Those of the engine, and ``policy``: the moderation hook ended it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain with one event: text to show, the tokens behind it (text may lag), and maybe the end."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. ``stop_reason``: the stop string or stop token id that ended it, None for any other end.

    ``token_ids`` hold every sampled token, a stop token and the tokens of a stop string included; ``text`` does not
    show them unless include_stop_str. ``logprobs`` (one entry per token) is None unless asked for. ``message``: of a
    chat's answer, as the conversation has it: what is said (``content``), what is thought (``reasoning_content``) and
    what is called (``tool_calls``), where there are such.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    message: Mapping[str, Any] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities, None unless logprobs were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """Everything about one prompt. ``prompt`` is None for token-id prompts; ``cached_tokens`` of its first sample."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]
    prompt_logprobs: PromptScores | None = None
    cached_tokens: int = 0


def special_stops(params: SamplingParams, tokenizer: Tokenizer) -> dict[int, str]:
    """Stop strings that are one special token each: the text leaves it out, so it cannot be looked for there."""
    found = {tokenizer.token_id(stop): stop for stop in params.stop}
    return {token_id: stop for token_id, stop in found.items() if token_id in tokenizer.special_token_ids}


class SampleStream:
    """The text of one sample as its events come. When ``stopped`` turns true the sender aborts the engine's request.

    ``feed`` and ``finish`` return Pieces whose texts concatenate to the completion's text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stop_token_ids: frozenset[int] = frozenset(),
        index: int = 0,
        prompt_token_ids: Sequence[int] = (),
        moderate: Moderate | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """With ``prompt_token_ids`` the text is what follows the prompt's text (a leading space is kept).

        ``shown``: special tokens that stand in the text all the same.

        ``moderate`` sees every text before it is returned; then ``feed`` and ``finish`` take as long as it does.
        """
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.stop_reason: str | int | None = None
        self.finish_reason: FinishReason | None = None
        self.error: ErrorInfo | None = None
        self.prompt_scores: PromptScores | None = None
        self.embedding: np.ndarray | None = None
        self.cached_tokens = 0
        self._params = params
        self._stop_token_ids = stop_token_ids
        self._decoder = tokenizer.incremental_decoder(params.skip_special_tokens, shown).follow(prompt_token_ids)
        self._special_stops = special_stops(params, tokenizer)
        self._finder = StopFinder([stop for stop in params.stop if stop not in self._special_stops.values()])
        self._text: list[str] = []
        self._moderate = moderate
        self._ended: FinishReason | None = None  # by the hook

    @property
    def moderated(self) -> bool:
        """Whether its texts are shown to somebody first, who may take his time."""
        return self._moderate is not None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found, or the hook has ended it; later tokens are ignored."""
        return self._finder.matched is not None or self._ended is not None

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._text)

    def feed(self, tokens: Tokens) -> Piece:
        """New tokens of the engine."""
        if self.stopped:
            return Piece("", index=self.index)
        text: list[str] = []
        first = len(self.token_ids)
        for token_id in tokens.token_ids:
            position = len(self.token_ids)
            self.token_ids.append(token_id)
            if token_id in self._stop_token_ids and position >= self._params.min_tokens:
                self.stop_reason = self._special_stops.get(token_id, token_id)
                if not self._params.include_stop_str:
                    continue
                if token_id in self._special_stops and self._params.skip_special_tokens:
                    text.append(self._decoder.finish() + self._special_stops[token_id])
                    continue
            text.append(self._searched(self._decoder.feed((token_id,)), position >= self._params.min_tokens))
            if self.stopped:
                break
        if not self._may_show("".join(text)):
            del self.token_ids[first:]
            return Piece("", index=self.index)
        taken = len(self.token_ids) - first
        self.logprobs += tokens.logprobs[:taken]
        return self._piece("".join(text), tokens.token_ids[:taken], tokens.logprobs[:taken])

    def finish(self, finished: Finished) -> Piece:
        """The engine's last word; flushes held text."""
        text = "" if self.stopped else self._searched(self._decoder.finish(), True)
        if not self.stopped:
            text += self._finder.finish()
        if not self._may_show(text):
            text = ""
        self.finish_reason = self._ended or ("stop" if self.stopped else finished.reason)
        self.error = self.error if self.stopped else finished.error
        self.prompt_scores = finished.prompt_scores
        self.embedding = finished.embedding
        self.cached_tokens = finished.cached_tokens
        return self._piece(text, (), (), self.finish_reason)

    def completion(self, message: Mapping[str, Any] | None = None) -> Completion:
        """The record of a finished sample; ``message``: see there."""
        assert self.finish_reason is not None, "completion() follows finish()"
        return Completion(
            index=self.index,
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason if self.finish_reason == "stop" else None,
            logprobs=tuple(self.logprobs) if self._params.logprobs is not None else None,
            message=message,
        )

    def _may_show(self, text: str) -> bool:
        """Ask the hook, and do as it says."""
        if self._moderate is None or not text:
            return True
        said = ask(self._moderate, self.text, text)
        if said == "end":
            self._ended, self.stop_reason = "stop", "policy"
        elif said == "stop":
            self._ended, self.stop_reason = "policy", None
        elif said != "continue":
            self._ended, self.error = "error", said
        return said in ("continue", "end")

    def _searched(self, text: str, search: bool) -> str:
        if not search:
            return text
        out = self._finder.feed(text)
        if self._finder.matched is not None:
            self.stop_reason = self._finder.matched
            if self._params.include_stop_str:
                out += self._finder.matched
        return out

    def _piece(
        self,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None = None,
    ) -> Piece:
        self._text.append(text)
        return Piece(text, token_ids, logprobs, reason, self.index)
