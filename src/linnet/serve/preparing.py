# SPDX-License-Identifier: Apache-2.0
"""From a body to messages for the engine: parse, check, render, tokenise. Runs in a worker thread.

A text that is certainly longer than the context is refused before it is tokenised.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from linnet.api import ParameterError, SampleStream, SamplingDefaults, SamplingParams, new_tokens, stop_ids
from linnet.engine import Submit, derive_seed
from linnet.errors import ConfigError
from linnet.serve.body import parse_object
from linnet.serve.bridge import Sample
from linnet.serve.config import RequestLimits
from linnet.serve.errors import broken_template, invalid, model_not_found
from linnet.serve.protocol import ChatRequest, CompletionRequest, read_request
from linnet.serve.protocol.chat import Message, plain_messages
from linnet.serve.sampling import parameter_error, parameter_names, sampling_params
from linnet.serve.security import narrower_salt
from linnet.text import ChatTemplateError, Tokenizer

LEAST_CHARACTERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the server knows of the model. ``validate`` is the engine's own check of a Submit and mutates nothing.

    ``defaults`` hold where a request says nothing; ``default_max_tokens`` ends a chat answer that names no number.
    """

    names: tuple[str, ...]
    tokenizer: Tokenizer
    vocabulary_size: int
    max_model_len: int
    fingerprint: str
    created_s: int
    most_characters: int
    validate: Callable[[Submit], None]
    draw_seed: Callable[[], int]
    defaults: SamplingDefaults
    default_max_tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text`` is what an echo shows."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be sent to the engine."""

    request: CompletionRequest | ChatRequest
    params: SamplingParams
    prompts: tuple[Prompt, ...]

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts, each counted once whatever n is."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)


def most_characters(tokenizer: Tokenizer, max_model_len: int) -> int:
    """No longer text can fit into the context: its length if every token were the longest of the vocabulary."""
    longest = max((len(tokenizer.token(token_id) or "") for token_id in range(tokenizer.vocabulary_size)), default=1)
    return max(longest * max_model_len, LEAST_CHARACTERS)


class Preparer:
    """The pure part of every endpoint, for one model and one set of caps."""

    def __init__(self, facts: ModelFacts, limits: RequestLimits) -> None:
        self.facts = facts
        self.limits = limits

    def completion(self, body: bytes) -> Prepared:
        """Raises ApiError 400 or 404."""
        request = read_request(CompletionRequest, parse_object(body))
        self.check_model(request.model)
        params = sampling_params(request, self.limits, self.facts.defaults)
        add_special = request.add_special_tokens is not False
        prompts = tuple(self._prompt(value, place, add_special) for value, place in self._prompts(request.prompt))
        return self._checked(Prepared(request, params, prompts))

    def chat(self, body: bytes) -> Prepared:
        """Raises ApiError 400 or 404."""
        request = read_request(ChatRequest, parse_object(body))
        self.check_model(request.model)
        params = sampling_params(request, self.limits, self.facts.defaults)
        text = self.render(
            request.messages,
            request.add_generation_prompt,
            request.continue_final_message,
            request.chat_template_kwargs,
        )
        prompt = Prompt(text, self.encode(text, "messages", add_special=bool(request.add_special_tokens)))
        return self._checked(Prepared(request, params, (prompt,)))

    def check_model(self, name: str | None) -> None:
        """An exact match with a served name, and nothing else: never a path."""
        if name is not None and name not in self.facts.names:
            raise model_not_found(name, self.facts.names)

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        arguments: dict[str, Any] | None,
    ) -> str:
        """The checkpoint's chat template over plain messages. Raises ApiError 400, or 500 if it does not compile."""
        if len(messages) > self.limits.messages:
            raise invalid(f"messages has more than {self.limits.messages} entries", "messages")
        goes_on = bool(continue_final_message)
        if goes_on and add_generation_prompt:
            raise invalid(
                "continue_final_message and add_generation_prompt cannot both be true", "continue_final_message"
            )
        plain = plain_messages(messages)
        try:
            return self.facts.tokenizer.apply_chat_template(
                plain,
                add_generation_prompt=not goes_on and add_generation_prompt is not False,
                template_arguments=arguments,
                continue_final_message=goes_on,
            )
        except ConfigError as error:
            raise invalid(str(error), "messages", "chat_template_error") from None
        except ChatTemplateError as error:
            raise broken_template(error.sentence) from None

    def encode(self, text: str, param: str, *, add_special: bool) -> tuple[int, ...]:
        """Token ids of a text. Raises ApiError 400."""
        if len(text) > self.facts.most_characters:
            raise invalid(
                f"a text of {len(text)} characters cannot fit into the context of {self.facts.max_model_len} tokens",
                param,
                "context_length_exceeded",
            )
        try:
            return tuple(self.facts.tokenizer.encode(text, add_special_tokens=add_special))
        except ConfigError as error:
            raise invalid(str(error), param) from None

    def samples(
        self, prepared: Prepared, salt: bytes, timeout_s: float | None, next_id: Callable[[], int]
    ) -> list[Sample]:
        """One engine request per prompt and sample, checked but not sent. Raises ApiError 400.

        Sample i of a prompt draws from ``derive_seed(seed, i)``; only the first one scores an echoed prompt.
        """
        facts, params = self.facts, prepared.params
        request = prepared.request
        names = parameter_names(request)
        stop_token_ids = stop_ids(params, facts.tokenizer, facts.vocabulary_size)
        salt = narrower_salt(salt, request.cache_salt)
        unscored = (
            params if params.prompt_logprobs is None or not params.max_tokens else replace(params, prompt_logprobs=None)
        )
        samples = []
        for prompt_index, prompt in enumerate(prepared.prompts):
            seed = facts.draw_seed() if params.seed is None else params.seed
            room = facts.max_model_len - len(prompt.token_ids)
            for index in range(params.n):
                own = params if index == 0 else unscored
                submit = Submit(
                    request_id=next_id(),
                    prompt_token_ids=prompt.token_ids,
                    params=own,
                    max_tokens=new_tokens(params, room, facts.default_max_tokens),
                    stop_token_ids=stop_token_ids,
                    seed=derive_seed(seed, index),
                    timeout_s=timeout_s,
                    priority=request.priority or 0,
                    cache_salt=salt,
                )
                if index == 0:
                    try:
                        facts.validate(submit)
                    except ParameterError as error:
                        raise parameter_error(error, names) from None
                    except ConfigError as error:
                        raise invalid(str(error)) from None
                choice = prompt_index * params.n + index
                stream = SampleStream(facts.tokenizer, own, stop_token_ids, choice, prompt.token_ids)
                samples.append(Sample(submit, stream, choice, prompt_index))
        return samples

    def _prompts(self, value: Any) -> list[tuple[Any, str]]:
        """The prompts in ``prompt`` with their places: a text, token ids, or a list of either."""
        if isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], (str, list))):
            return [(value, "prompt")]
        if not isinstance(value, list) or not value:
            raise invalid("prompt must be a text, a list of token ids, or a list of either", "prompt", "invalid_type")
        if len(value) > self.limits.prompts:
            raise invalid(f"prompt has more than {self.limits.prompts} entries, the most this server accepts", "prompt")
        return [(entry, f"prompt[{index}]") for index, entry in enumerate(value)]

    def _prompt(self, value: Any, place: str, add_special: bool) -> Prompt:
        if isinstance(value, str):
            return Prompt(value, self.encode(value, place, add_special=add_special))
        most = self.facts.vocabulary_size
        if not isinstance(value, list) or not all(type(token) is int and 0 <= token < most for token in value):
            raise invalid(f"{place} must be a text or a list of token ids from 0 to {most - 1}", place)
        return Prompt(self.facts.tokenizer.decode(value, skip_special_tokens=False), tuple(value))

    def _checked(self, prepared: Prepared) -> Prepared:
        """Every prompt has tokens, and room for an answer."""
        request, most = prepared.request, self.facts.max_model_len
        chat = isinstance(request, ChatRequest)
        wanted = prepared.params.max_tokens
        names = parameter_names(request)
        for index, prompt in enumerate(prepared.prompts):
            place = "messages" if chat else "prompt" if len(prepared.prompts) == 1 else f"prompt[{index}]"
            count = len(prompt.token_ids)
            if not count:
                raise invalid(f"{place} has no tokens; at least one is needed", place)
            least = 1 if wanted is None else wanted
            if count + least > most:
                param = place if count + 1 > most else names.get("max_tokens", "max_tokens")
                raise invalid(
                    f"{count} prompt tokens and {least} new ones are more than the context of {most} tokens holds",
                    param,
                    "context_length_exceeded",
                )
        return prepared
