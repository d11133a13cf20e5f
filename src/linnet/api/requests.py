# SPDX-License-Identifier: Apache-2.0
"""From a prompt and its parameters to messages for the engine: the one place where a Submit is made.

Pure but for the ids and seeds it draws; ``LLM`` calls it in the caller's thread, the server in its preparing pool.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from linnet.api.generation import Sample
from linnet.api.moderation import Moderate
from linnet.api.output import SampleStream, special_stops
from linnet.api.prompts import PreparedPrompt, token_row
from linnet.api.sampling_defaults import new_tokens
from linnet.engine import EngineFacts, Pooling, SamplingParams, Submit, Vocabulary, derive_seed
from linnet.errors import ConfigError
from linnet.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for a request besides its sampling.

    default_max_tokens: bounds the answer where the parameters name no max_tokens, as far as there is room; None: the
                        room alone does.
    timeout_s, priority, tenant, cache_salt, grammar, adapter: see ``Submit``.
    shown:              special tokens that stand in the text all the same.
    """

    default_max_tokens: int | None = None
    timeout_s: float | None = None
    priority: int = 0
    tenant: bytes = b""
    cache_salt: bytes = b""
    grammar: str | None = None
    shown: frozenset[int] = frozenset()
    adapter: int | None = None


class RequestBuilder:
    """For one engine, known by its facts, and one tokenizer. May be used from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: EngineFacts,
        draw_seed: Callable[[], int],
        moderate: Moderate | None = None,
    ) -> None:
        self.tokenizer, self.facts = tokenizer, facts
        self._draw_seed, self._moderate = draw_seed, moderate
        self._ids = itertools.count()

    def for_engine(self, facts: EngineFacts) -> "RequestBuilder":
        """The same for another engine."""
        return RequestBuilder(self.tokenizer, facts, self._draw_seed, self._moderate)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokens stand for, for grammars. Takes a while the first time."""
        tokenizer, size = self.tokenizer, self.facts.vocabulary_size
        tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        return Vocabulary(
            text=b"".join(tokens),
            lengths=np.array([len(token) for token in tokens], np.int32),
            special_ids=tuple(sorted(one for one in tokenizer.special_token_ids if one < size)),
            eos_ids=tuple(sorted(one for one in tokenizer.eos_token_ids if one < size)),
        )

    def check_length(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Whether a prompt leaves room for what is asked for, before anything is made of it. Raises LengthError."""
        self.facts.check_length(prompt_tokens, _least_tokens(params))

    def samples(self, prompts: Sequence[PreparedPrompt], params: SamplingParams, terms: Terms) -> list[Sample]:
        """Every sample of every prompt, valid and not sent: the n of a prompt stand together.

        Sample i of a prompt draws from ``derive_seed(seed, i)``; where prompts are scored the first sample scores for
        all, and computes the prompt for all. Raises ParameterError, ConfigError and UnsupportedError.
        """
        ends = stop_ids(params, self.tokenizer, self.facts.vocabulary_size)
        samples: list[Sample] = []
        for prompt_index, prompt in enumerate(prompts):
            seed = self._draw_seed() if params.seed is None else params.seed
            room = self.facts.max_model_len - len(prompt.token_ids)
            most = max(new_tokens(params, room, terms.default_max_tokens), _least_tokens(params))
            for index in range(params.n):
                own = replace(params, prompt_logprobs=None) if _scored_already(params, index, most) else params
                submit = Submit(
                    request_id=next(self._ids),
                    prompt_token_ids=prompt.token_ids,
                    params=own,
                    max_tokens=most,
                    stop_token_ids=ends,
                    seed=derive_seed(seed, index),
                    timeout_s=terms.timeout_s,
                    priority=terms.priority,
                    tenant=terms.tenant,
                    cache_salt=terms.cache_salt,
                    grammar=terms.grammar,
                    fork_of=samples[-index].submit.request_id if index else None,
                    shared_tokens=prompt.shared_tokens,
                    adapter=terms.adapter,
                )
                if index == 0:  # the others differ in nothing that could be refused
                    self.facts.validate(submit)
                stream = SampleStream(
                    self.tokenizer, own, ends, len(samples), prompt.token_ids, self._moderate, terms.shown
                )
                samples.append(Sample(submit, stream, prompt_index))
        return samples

    def scoring(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int] | None, top_logprobs: int, compare: bool
    ) -> list[Sample]:
        """One sample for each row that generates nothing and scores the row's tokens from its start on (default 1).

        Raises ParameterError and ConfigError.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=top_logprobs)
        first = [1] * len(rows) if starts is None else [int(start) for start in starts]
        if len(first) != len(rows):
            raise ConfigError(f"{len(first)} starts for {len(rows)} rows; give one for each")
        samples = []
        for index, (given, start) in enumerate(zip(rows, first, strict=True)):
            row = token_row(given)
            if len(row) < 2 or not 1 <= start < len(row):
                raise ConfigError(
                    f"row {index} has {len(row)} tokens and start {start}; a row needs two tokens or more and a start "
                    "from 1 to its last position"
                )
            submit = Submit(
                request_id=next(self._ids),
                prompt_token_ids=row,
                params=params,
                max_tokens=0,
                compare=compare,
                score_start=start,
            )
            self.facts.validate(submit)
            samples.append(Sample(submit, SampleStream(self.tokenizer, params, index=index), index))
        return samples

    def embedding(self, prompts: Sequence[PreparedPrompt], pooling: Pooling | None, terms: Terms) -> list[Sample]:
        """One sample for each prompt that tells its embedding; ``pooling`` None: as the model has it.

        Raises ParameterError and ConfigError.
        """
        params = SamplingParams(temperature=0.0)
        samples = []
        for index, prompt in enumerate(prompts):
            submit = Submit(
                request_id=next(self._ids),
                prompt_token_ids=prompt.token_ids,
                params=params,
                max_tokens=0,
                timeout_s=terms.timeout_s,
                priority=terms.priority,
                tenant=terms.tenant,
                cache_salt=terms.cache_salt,
                embed=pooling or self.facts.pooling,
                adapter=terms.adapter,
            )
            self.facts.validate(submit)
            samples.append(Sample(submit, SampleStream(self.tokenizer, params, index=index), index))
        return samples


def stop_ids(params: SamplingParams, tokenizer: Tokenizer, vocabulary_size: int) -> frozenset[int]:
    """Ids that end a request: the caller's, the model's end-of-sequence ids unless ignore_eos, and special tokens that
    are stop strings as a whole."""
    eos = () if params.ignore_eos else tokenizer.eos_token_ids
    found = frozenset(params.stop_token_ids) | frozenset(eos) | frozenset(special_stops(params, tokenizer))
    return frozenset(token_id for token_id in found if token_id < vocabulary_size or token_id in params.stop_token_ids)


def _least_tokens(params: SamplingParams) -> int:
    """New tokens for which there must be room at least: one, unless the prompt's scores are answer enough."""
    if params.max_tokens is not None:
        return params.max_tokens
    return 1 if params.prompt_logprobs is None else 0


def _scored_already(params: SamplingParams, index: int, most: int) -> bool:
    """Whether sample ``index`` leaves the scores to the first one; one that generates nothing has nothing else."""
    return index > 0 and params.prompt_logprobs is not None and most > 0
