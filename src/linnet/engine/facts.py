# SPDX-License-Identifier: Apache-2.0
"""What is known of an engine outside it: its limits, its vocabulary, and which requests it would take."""

from dataclasses import dataclass

import numpy as np

from linnet.engine.adapters import AdapterFacts
from linnet.engine.messages import POOLINGS, Pooling, Submit
from linnet.engine.sampling_params import ParameterError
from linnet.errors import ConfigError
from linnet.scheduler import SchedulerConfig

MOST_SEARCH_STOPS = 64
"""Stop tokens of a beam search: so many more continuations of each beam are looked at in every step."""


class LengthError(ParameterError):
    """A prompt and its new tokens are more than the context holds. ``param``: the prompt if it alone is too much."""

    def __init__(self, prompt_tokens: int, new_tokens: int, most: int) -> None:
        self.prompt_tokens, self.new_tokens, self.most = prompt_tokens, new_tokens, most
        alone = prompt_tokens >= most
        total = prompt_tokens + new_tokens
        super().__init__(
            "prompt" if alone else "max_tokens",
            f"the prompt has {prompt_tokens} tokens; the context holds {most} (max_model_len), new ones included"
            if alone
            else f"{prompt_tokens} tokens of prompt and max_tokens {new_tokens} make {total}; the context holds {most} "
            "tokens (max_model_len)",
            settings=["max_tokens", "max_model_len"],
        )


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Frozen plain values, so that they can be sent to another process.

    scheduling: the limits that its scheduler keeps.
    compares:   whether a second model runs in lockstep.
    embedding_size: width of an embedding; 0: it makes none.
    pooling:    what embeddings are made of, unless a request asks for another.
    generates:  whether it tells next tokens; one that does not makes embeddings only.
    adapters:   bounds of its adapters; None: it takes none.
    """

    vocabulary_size: int
    scheduling: SchedulerConfig
    compares: bool = False
    embedding_size: int = 0
    pooling: Pooling = "last"
    generates: bool = True
    adapters: AdapterFacts | None = None

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus new tokens."""
        return self.scheduling.max_model_len

    @property
    def max_requests(self) -> int:
        """Unfinished requests that are accepted, running and waiting together."""
        return self.scheduling.max_sequences + self.scheduling.max_waiting_requests

    @property
    def kv_tokens(self) -> int:
        """Token slots of the KV cache."""
        return self.scheduling.num_blocks * self.scheduling.block_size

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """The one question whether a request fits into the context. Raises LengthError."""
        if self.scheduling.excess_tokens(prompt_tokens, new_tokens) > 0:
            raise LengthError(prompt_tokens, new_tokens, self.max_model_len)

    def validate(self, submit: Submit) -> None:
        """Refuse what can never run there: ParameterError or ConfigError. Pure."""
        prompt = submit.prompt_token_ids
        if not prompt:
            raise ParameterError("prompt", "the prompt is empty; at least one token is needed")
        self._check_prompt_ids(prompt)
        self.check_length(len(prompt), submit.max_tokens)
        for name, token_ids in (
            ("stop_token_ids", submit.stop_token_ids),
            ("logit_bias", submit.params.logit_bias),
        ):
            for token_id in token_ids:
                if not 0 <= token_id < self.vocabulary_size:
                    raise ParameterError(
                        name, f"{name} has token id {token_id}; accepted are 0 to {self.vocabulary_size - 1}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(submit.params, name) or 0
            if count > self.vocabulary_size:
                raise ParameterError(name, f"{name} is {count}; the vocabulary has {self.vocabulary_size} tokens")
        if submit.params.use_beam_search:
            self._check_search(submit)
        if submit.embed is not None:
            self._check_embedding(submit)
        elif not self.generates:
            raise ParameterError("model", "this model has no head: it writes and scores no text, it makes embeddings")
        if submit.adapter is not None and (self.adapters is None or submit.compare):
            raise ConfigError("this engine takes no adapters, or none in a comparison", settings=["max_adapters"])
        if submit.compare and not self.compares:
            raise ConfigError("this engine has no second model to compare with")
        if not 0 <= submit.seed < 1 << 64:
            raise ParameterError("seed", f"seed {submit.seed} does not fit into 64 bits")
        if submit.timeout_s is not None and not 0 <= submit.timeout_s < 1e9:
            raise ParameterError("timeout", f"timeout_s is {submit.timeout_s}; accepted is 0 to 1e9 seconds")
        if submit.score_start < 1:
            raise ConfigError(f"score_start is {submit.score_start}; the first token that can be scored is 1")

    def _check_embedding(self, submit: Submit) -> None:
        if not self.embedding_size:
            raise ParameterError(
                "model", "this model keeps no hidden states that could be read; it makes no embeddings"
            )
        if submit.embed not in POOLINGS:
            raise ParameterError("pooling", f"pooling is {str(submit.embed)[:40]!r}; accepted: {', '.join(POOLINGS)}")
        if submit.max_tokens or submit.params.prompt_logprobs is not None or submit.compare:
            raise ConfigError("an embedding comes alone: nothing is generated and nothing is scored with it")

    def _check_search(self, submit: Submit) -> None:
        """All beams of a search go on together: they need seats and blocks at the same time."""
        width, limits = submit.params.n, self.scheduling
        if limits.state_slots:
            raise ParameterError(
                "use_beam_search",
                "use_beam_search is not possible with this model: its layers carry a state from token to token, and a "
                "beam cannot go on from that of another",
            )
        if submit.max_tokens == 0:
            raise ParameterError("max_tokens", "max_tokens is 0; accepted with use_beam_search is at least 1")
        stops = len(submit.stop_token_ids)
        if stops > MOST_SEARCH_STOPS:
            raise ParameterError(
                "stop_token_ids",
                f"stop_token_ids has {stops} ids, those of the model included; accepted with use_beam_search are at "
                f"most {MOST_SEARCH_STOPS}",
            )
        tokens = (self.vocabulary_size - stops) // (1 if submit.grammar is None else 2)
        most = min(limits.max_sequences, limits.token_budget, limits.output_rows, tokens)
        if width > most:
            raise ParameterError(
                "n",
                f"n is {width}; with use_beam_search accepted is at most {most}: all beams are computed in one step "
                "(max_sequences, token_budget) and goes on with a token of its own",
                settings=["max_sequences", "token_budget"],
            )
        slots = len(submit.prompt_token_ids) + max(submit.max_tokens, 1) - 1
        for group, held in zip(limits.groups, limits.held_blocks(slots), strict=True):
            if width * held > group.num_blocks:
                raise ParameterError(
                    "n",
                    f"{width} beams of {slots} tokens each need {width * held * limits.block_size} token slots of the "
                    f"KV cache, which has {group.num_blocks * limits.block_size}; ask for fewer beams or tokens",
                    settings=["kv_bytes"],
                )

    def _check_prompt_ids(self, prompt: tuple[int, ...]) -> None:
        ids = np.asarray(prompt)
        if ids.dtype.kind in "iu" and int(ids.min()) >= 0 and int(ids.max()) < self.vocabulary_size:
            return
        wrong = next(
            (
                token
                for token in prompt
                if isinstance(token, bool)
                or not isinstance(token, (int, np.integer))
                or not 0 <= token < self.vocabulary_size
            ),
            prompt[0],
        )
        raise ParameterError(
            "prompt", f"prompt token id {wrong!r}; accepted are integers from 0 to {self.vocabulary_size - 1}"
        )
