# SPDX-License-Identifier: Apache-2.0
"""The JSON of answers: whole ones and chunks, for both dialects, from the same pieces."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from linnet.api import Piece, Sample, TokenLogprob
from linnet.api.tools import AnswerForm, AnswerReader, CallPiece, Delta
from linnet.serve.logprobs import (
    LegacyLogprobs,
    TokenTexts,
    chat_content,
    entries_of,
    finite,
    prompt_entries,
    prompt_logprobs,
)
from linnet.serve.preparing import ModelFacts, Prepared
from linnet.serve.protocol import ChatRequest, CompletionRequest, EmbeddingRequest
from linnet.serve.records import Usage
from linnet.text import Tokenizer

REASONS = {"policy": "content_filter"}
"""Finish reasons that OpenAI's API calls otherwise."""


class Shape(Protocol):
    """One answer's form. ``chunks`` is asked in the order of the pieces."""

    held: bool
    """Whether nothing can be shown before everything is there."""
    says_done: bool
    """Whether a stream ends with ``[DONE]``."""

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]: ...
    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]: ...
    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]: ...


class _Envelope:
    """Id, model, time and usage: equal in both dialects."""

    says_done = True

    def __init__(self, prepared: Prepared, facts: ModelFacts, identity: str, kind: str, chunk_kind: str) -> None:
        assert not isinstance(prepared.request, EmbeddingRequest)
        self._prepared, self._facts, self._request = prepared, facts, prepared.request
        self._include_usage = prepared.request.include_usage
        self._shown_tokens = 0  # in chunks so far
        self._fields: dict[str, Any] = {
            "id": identity,
            "created": int(time.time()),
            "model": prepared.request.model,
            "system_fingerprint": facts.fingerprint,
        }
        if prepared.turn is not None:
            visit = prepared.turn.visit
            self._fields["session"] = {"id": visit.session_id, "turn": visit.turn}
        self._kind, self._chunk_kind = kind, chunk_kind
        self._texts = TokenTexts(facts.tokenizer, bool(self._request.return_tokens_as_token_ids))

    def _whole(self, choices: list[dict[str, Any]], samples: Sequence[Sample]) -> dict[str, Any]:
        return {**self._fields, "object": self._kind, "choices": choices, "usage": self._usage(samples)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._fields, "object": self._chunk_kind, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = self._tokens(self._shown_tokens) if self._request.continuous_usage else None
        return chunk

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The last chunk of a stream that asked for it."""
        return {**self._fields, "object": self._chunk_kind, "choices": [], "usage": self._usage(samples)}

    def _usage(self, samples: Sequence[Sample]) -> dict[str, Any]:
        usage = Usage.of(self._prepared, samples)
        return {**self._tokens(usage.generated), "prompt_tokens_details": {"cached_tokens": usage.cached}}

    def _tokens(self, generated: int) -> dict[str, Any]:
        prompt = self._prepared.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    def _prompt_logprobs(self, sample: Sample) -> dict[str, Any]:
        """vLLM's field: of each prompt token but the first, its log-probability and the likeliest ones."""
        asked, scores = self._request.prompt_logprobs, sample.stream.prompt_scores
        if asked is None:
            return {}
        ids = self._prepared.prompts[sample.prompt_index].token_ids
        return {"prompt_logprobs": prompt_logprobs(self._facts.tokenizer, prompt_entries(ids, scores), asked)}

    def _extras(self, sample: Sample, token_ids: Sequence[int], prompt: bool) -> dict[str, Any]:
        if not self._request.return_token_ids:
            return {}
        extras: dict[str, Any] = {"token_ids": list(token_ids)}
        if prompt:
            extras["prompt_token_ids"] = list(sample.submit.prompt_token_ids)
        return extras


class CompletionShape(_Envelope):
    """``text_completion``."""

    def __init__(self, prepared: Prepared, facts: ModelFacts, request_id: str) -> None:
        super().__init__(prepared, facts, f"cmpl-{request_id}", "text_completion", "text_completion")
        assert isinstance(prepared.request, CompletionRequest)
        self._echo = bool(prepared.request.echo)
        self._logprobs = prepared.request.logprobs is not None
        self._asked = prepared.request.n or 1
        self.held = self._echo and self._logprobs  # scores of the prompt come with the end
        self._blocks: dict[int, LegacyLogprobs] = {}
        self._scores: dict[int, Any] = {}

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        self._learn(samples)
        choices = []
        for index, sample in enumerate(best(samples, self._asked)):
            stream = sample.stream
            text = self._echoed(sample) + stream.text
            logprobs = self._block(sample, stream.logprobs, first=True)
            extras = self._extras(sample, stream.token_ids, True)
            choice = self._choice(sample, text, logprobs, stream.finish_reason, extras)
            choices.append({**choice, "index": index, **self._prompt_logprobs(sample)})
        return self._whole(choices, samples)

    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]:
        """One chunk per piece with anything in it; the first shows the echo."""
        self._learn([sample])
        self._shown_tokens += len(piece.token_ids)
        first = sample.index not in self._blocks
        text = (self._echoed(sample) if first else "") + piece.text
        logprobs = self._block(sample, piece.logprobs, first)
        extras = self._extras(sample, piece.token_ids, first)
        if text or piece.finish_reason or (piece.token_ids and (self._logprobs or extras)):
            yield self._chunk(self._choice(sample, text, logprobs, piece.finish_reason, extras))

    def _learn(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.stream.prompt_scores is not None:
                self._scores[sample.prompt_index] = sample.stream.prompt_scores

    def _echoed(self, sample: Sample) -> str:
        """The prompt's text; of one whose tokens are shown, too, the text of these."""
        prompt = self._prepared.prompts[sample.prompt_index]
        if not self._echo:
            return ""
        return (
            self._facts.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
            if self.held
            else prompt.text or ""
        )

    def _block(self, sample: Sample, logprobs: Sequence[TokenLogprob], first: bool) -> dict[str, Any] | None:
        prompt = self._prepared.prompts[sample.prompt_index]
        if first:
            skip = self._prepared.params.skip_special_tokens
            self._blocks[sample.index] = LegacyLogprobs(self._facts.tokenizer, self._texts, skip)
        if not self._logprobs:
            return None
        blocks = self._blocks[sample.index]
        if not first:
            return blocks.block(entries_of(logprobs))
        if not self._echo:
            blocks.follow(prompt.token_ids, 0)
            return blocks.block(entries_of(logprobs))
        shown = blocks.prompt(prompt_entries(prompt.token_ids, self._scores.get(sample.prompt_index)))
        blocks.follow(prompt.token_ids, len(self._echoed(sample)))
        generated = blocks.block(entries_of(logprobs))
        return {name: shown[name] + generated[name] for name in shown}

    def _choice(
        self, sample: Sample, text: str, logprobs: dict[str, Any] | None, reason: str | None, extras: dict[str, Any]
    ) -> dict[str, Any]:
        shown = said(reason)
        choice = {"index": sample.index, "text": text, "logprobs": logprobs, "finish_reason": shown, **extras}
        if reason is not None:
            choice["stop_reason"] = sample.stream.stop_reason
        return choice


class ChatShape(_Envelope):
    """``chat.completion`` and ``chat.completion.chunk``."""

    held = False

    def __init__(self, prepared: Prepared, facts: ModelFacts, request_id: str) -> None:
        super().__init__(prepared, facts, f"chatcmpl-{request_id}", "chat.completion", "chat.completion.chunk")
        assert isinstance(prepared.request, ChatRequest)
        self._logprobs = bool(prepared.request.logprobs)
        self._answer, self._request_id = prepared.answer, request_id
        self._shows_thoughts = facts.forms.thinks and prepared.request.include_reasoning is not False
        self._begun: dict[int, AnswerReader | None] = {}

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = []
        for sample in samples:
            stream = sample.stream
            message, called = self._message(sample)
            choices.append(
                {
                    "index": sample.index,
                    "message": message,
                    "logprobs": self._content(stream.logprobs),
                    "finish_reason": said(stream.finish_reason, called),
                    "stop_reason": stream.stop_reason,
                    **self._extras(sample, stream.token_ids, True),
                    **self._prompt_logprobs(sample),
                }
            )
        return self._whole(choices, samples)

    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]:
        """The role first, then the answer as it comes, then an empty delta with the finish reason."""
        self._shown_tokens += len(piece.token_ids)
        if sample.index not in self._begun:
            self._begun[sample.index] = None if self._answer is None else self._answer.reader()
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield self._chunk(self._choice(sample, delta, None, None, self._extras(sample, (), True)))
        reader = self._begun[sample.index]
        extras = self._extras(sample, piece.token_ids, False)
        delta = {"content": piece.text} if reader is None else self._delta(sample, reader.feed(piece.text))
        if any(delta.values()) or (piece.token_ids and (self._logprobs or extras)):
            logprobs = self._content(piece.logprobs)
            yield self._chunk(self._choice(sample, delta, logprobs, None, extras))
        if piece.finish_reason is not None:
            if reader is not None and (last := self._delta(sample, reader.finish())):
                yield self._chunk(self._choice(sample, last, None, None, {}))
            called = reader is not None and reader.calls > 0
            choice = self._choice(sample, {}, None, piece.finish_reason, {}, called)
            yield self._chunk({**choice, "stop_reason": sample.stream.stop_reason})

    def _usage(self, samples: Sequence[Sample]) -> dict[str, Any]:
        usage = super()._usage(samples)
        if self._answer is not None and self._facts.forms.thinks:
            thought = sum(reasoning_tokens(self._facts.tokenizer, self._answer, sample) for sample in samples)
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        return usage

    def _message(self, sample: Sample) -> tuple[dict[str, Any], bool]:
        """And whether anything is called."""
        if self._answer is None:
            return {"role": "assistant", "content": sample.stream.text, "refusal": None}, False
        answer = self._answer.read(sample.stream.text)
        message = answer.message(partial(self._answer.identity, self._request_id, sample.index))
        reasoning = message.pop("reasoning_content", None)
        message |= {"content": answer.content or (None if answer.calls else ""), "refusal": None}
        return message | ({"reasoning_content": reasoning} if self._shows_thoughts else {}), bool(answer.calls)

    def _delta(self, sample: Sample, news: Delta) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if news.content:
            delta["content"] = news.content
        if news.reasoning and self._shows_thoughts:
            delta["reasoning_content"] = news.reasoning
        if news.calls:
            delta["tool_calls"] = [self._call(sample, piece) for piece in news.calls]
        return delta

    def _call(self, sample: Sample, piece: CallPiece) -> dict[str, Any]:
        """News of a call: what it is comes with its name."""
        if piece.name is None:
            return {"index": piece.index, "function": {"arguments": piece.arguments}}
        assert self._answer is not None
        identity = self._answer.identity(self._request_id, sample.index, piece.index)
        function = {"name": piece.name, "arguments": piece.arguments}
        return {"index": piece.index, "id": identity, "type": "function", "function": function}

    def _content(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": chat_content(self._texts, logprobs), "refusal": None} if self._logprobs else None

    def _choice(
        self,
        sample: Sample,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        reason: str | None,
        extras: dict[str, Any],
        called: bool = False,
    ) -> dict[str, Any]:
        shown = said(reason, called)
        return {"index": sample.index, "delta": delta, "logprobs": logprobs, "finish_reason": shown, **extras}


def reasoning_tokens(tokenizer: Tokenizer, form: AnswerForm, sample: Sample) -> int:
    """How many of an answer's tokens are thoughts, their tags included."""
    reader, decoder = form.reader(), tokenizer.incremental_decoder(shown=form.shown)
    count = 0
    for index, token_id in enumerate(sample.stream.token_ids):
        before = reader.thinking
        reader.feed(decoder.feed((token_id,)))
        if not before and not reader.thinking:
            continue
        if form.thoughts is None:
            count += 1
            continue
        count = index + 1  # they stand at the beginning
        if not reader.thinking:
            break
    return count


def best(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Of each prompt's samples the ``count`` likeliest by token, best first; all, as they are, where that is all."""
    found: list[Sample] = []
    for index in dict.fromkeys(sample.prompt_index for sample in samples):
        own = [sample for sample in samples if sample.prompt_index == index]
        if len(own) > count:
            own = sorted(own, key=lambda sample: -_mean_logprob(sample))[:count]
        found += own
    return found


def _mean_logprob(sample: Sample) -> float:
    logprobs = [finite(one.logprob) for one in sample.stream.logprobs]
    return sum(logprobs) / max(len(logprobs), 1)


def said(reason: str | None, called: bool = False) -> str | None:
    """A finish reason as it goes out; ``called``: the answer calls functions."""
    if called and reason == "stop":
        return "tool_calls"
    return None if reason is None else REASONS.get(reason, reason)
