# SPDX-License-Identifier: Apache-2.0
"""From a body to messages for the engine: parse, check, render, tokenise. Runs in a worker thread.

A text that is certainly longer than the context is refused before it is tokenised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from linnet.api import (
    LengthError,
    ParameterError,
    PreparedPrompt,
    RequestBuilder,
    Sample,
    SamplingDefaults,
    SamplingParams,
    Terms,
)
from linnet.api.adapters import Adapters
from linnet.api.modules import PromptModules
from linnet.api.opened import KnownModel
from linnet.api.sessions import Form, Turn, Visit, check_answered, check_single, form_of
from linnet.api.tools import AnswerForm, Enforced, ModelForms, ToolUse
from linnet.errors import ConfigError
from linnet.serve.body import parse_object
from linnet.serve.errors import broken_template, invalid, model_not_found, text_too_long, too_long, unsupported
from linnet.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    R,
    read_request,
)
from linnet.serve.protocol.chat import plain_messages
from linnet.serve.protocol.common import whole
from linnet.serve.protocol.structured import structured_of
from linnet.serve.protocol.tools import linked, tool_use
from linnet.serve.sampling import grammar_error, parameter_error, parameter_names, sampling_params
from linnet.serve.security import narrower_salt
from linnet.settings import RequestLimits
from linnet.text import ChatTemplateError, Tokenizer

LEAST_CHARACTERS = 1 << 16
LOWEST_BIAS = -100.0
NOTHING_NEW = SamplingParams(max_tokens=0, prompt_logprobs=0)
"""Of a prompt that is only read: it needs no room for an answer."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts(KnownModel):
    """What the server knows of the model; ``requests`` makes its engine's messages, ``adapters`` are served beside it.

    ``defaults`` hold where a request says nothing; ``default_max_tokens`` ends a chat answer that names no number.
    """

    names: tuple[str, ...]
    requests: RequestBuilder
    fingerprint: str
    created_s: int
    most_characters: int
    defaults: SamplingDefaults
    default_max_tokens: int
    forms: ModelForms
    adapters: Adapters

    def adapter_of(self, model: str | None) -> int | None:
        """The adapter that a request's ``model`` names; None: the model alone. An exact match with a served name, and
        nothing else: never a path. Raises ApiError 404."""
        if model is None or model in self.names:
            return None
        found = self.adapters.get(model)
        if found is None:
            raise model_not_found(model, (*self.names, *self.adapters.names))
        return found.number


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be sent to the engine. The prompts' texts are what an echo shows.

    form: what the prompts were. modules: what they begin with. turn: of the session that the request names.
    grammar: what its answers must be, not checked yet; loose_grammar: what will do where that cannot be used.
    answer: how its answers are read; None: as they are.
    """

    request: CompletionRequest | ChatRequest | EmbeddingRequest
    params: SamplingParams
    prompts: tuple[PreparedPrompt, ...]
    form: Form
    modules: tuple[str, ...] = ()
    turn: Turn | None = None
    grammar: str | None = None
    loose_grammar: str | None = None
    answer: AnswerForm | None = None

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts, each counted once whatever n is."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)


def most_characters(tokenizer: Tokenizer, max_model_len: int) -> int:
    """No longer text can fit into the context: its length if every token were the longest of the vocabulary."""
    longest = max((len(tokenizer.token(token_id) or "") for token_id in range(tokenizer.vocabulary_size)), default=1)
    return max(longest * max_model_len, LEAST_CHARACTERS)


def grammar_of(request: GenerationRequest) -> str | None:
    """What the answers must be, as an engine takes it. Raises ApiError 400 for what no grammar can be made of."""
    wanted = structured_of(request)
    if wanted is None:
        return None
    try:
        return wanted[0].description()
    except ParameterError as error:
        raise grammar_error(error, wanted[1]) from None


def truncated(ids: Sequence[int], last: int | None, bos: int | None) -> tuple[int, ...]:
    """The last so many, of which the first is the beginning of the sequence if it was."""
    if last is None or len(ids) <= last:
        return tuple(ids)
    kept = ids[len(ids) - last :]
    return (bos, *kept[1:]) if bos is not None and ids[0] == bos else tuple(kept)


class Preparer:
    """The pure part of every endpoint, for one model and one set of caps."""

    def __init__(self, facts: ModelFacts, limits: RequestLimits, modules: PromptModules) -> None:
        self.facts = facts
        self.limits = limits
        self.modules = modules

    def completion(self, body: bytes, visit: Visit) -> Prepared:
        """``visit`` opens the session that the request names. Raises ApiError 400 or 404, LinnetError for a session."""
        request = read_request(CompletionRequest, parse_object(body))
        self.check_model(request.model)
        params = self._without_bad_words(request, sampling_params(request, self.limits, self.facts.defaults))
        self._check_priority(request.priority)
        add_special = request.add_special_tokens is not False
        given = self._contents(request.prompt, "prompt")
        if request.session is not None:
            check_single(params.n)
            if len(given) != 1:
                raise invalid(f"prompt has {len(given)} entries; a session's turn is one", "prompt")
        prompts = []
        turn: Turn | None = None
        for content, place in given:
            form = form_of(content)
            whole = self._whole(request, visit, form, content)
            prompt = self._prompt(whole, place, add_special, self._last(request, params))
            prompts.append(self.modules.mark(prompt, form, visit.modules))
            turn = None if request.session is None else Turn(visit, form, whole)
        grammar = grammar_of(request)
        return self._checked(Prepared(request, params, tuple(prompts), form, visit.modules, turn, grammar))

    def chat(self, body: bytes, visit: Visit) -> Prepared:
        """As ``completion``."""
        request = self.read_turns(ChatRequest, body, "messages")
        self.check_model(request.model)
        params = self._without_bad_words(request, sampling_params(request, self.limits, self.facts.defaults))
        self._check_priority(request.priority)
        if request.session is not None:
            check_single(params.n)
            check_answered(
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
            )
        use = tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
        whole = self._whole(request, visit, "messages", tuple(plain_messages(request.messages)))
        text = self.render(
            linked(whole),
            request.add_generation_prompt,
            request.continue_final_message,
            self._template_arguments(request),
            use,
        )
        ids = self.encode(
            text, "messages", add_special=bool(request.add_special_tokens), last=self._last(request, params)
        )
        prompt = PreparedPrompt(text, ids)
        prompt = self.modules.mark(prompt, "messages", visit.modules)
        turn = None if request.session is None else Turn(visit, "messages", whole)
        answer, enforced = self._answer(request, text, use, bool(request.continue_final_message))
        prepared = Prepared(
            request,
            params,
            (prompt,),
            "messages",
            visit.modules,
            turn,
            None if enforced is None else enforced.grammar,
            None if enforced is None else enforced.loose,
            answer,
        )
        return self._checked(prepared)

    def read_turns(self, kind: type[R], body: bytes, name: str) -> R:
        """As ``read_request``; the parameter ``name`` is a conversation, whose turns are counted before each is read:
        that takes long, and all the while nobody else in this process gets to do anything. Raises ApiError 400."""
        value = parse_object(body)
        turns = value.get(name)
        if isinstance(turns, list) and len(turns) > self.limits.messages:
            raise invalid(f"{name} has {len(turns)} entries; this server accepts at most {self.limits.messages}", name)
        return read_request(kind, value)

    def _answer(
        self, request: ChatRequest, prompt: str, use: ToolUse | None, goes_on: bool
    ) -> tuple[AnswerForm | None, Enforced | None]:
        """How answers are read, and what they must be. ``goes_on``: an answer that has begun is not told apart."""
        wanted = structured_of(request)
        forms = self.facts.forms
        try:
            form = None if goes_on and use is None else forms.answer_form(prompt, use, wanted and wanted[0])
            return form, forms.enforced(form, use, wanted and wanted[0])
        except ParameterError as error:
            raise grammar_error(error, "tools" if wanted is None else wanted[1]) from None

    def embedding(self, body: bytes, visit: Visit) -> Prepared:
        """Raises ApiError 400 or 404. No session: the visit is not used."""
        request = read_request(EmbeddingRequest, parse_object(body))
        self.check_model(request.model)
        size = self.facts.facts.embedding_size
        if request.dimensions is not None and request.dimensions > size:
            raise invalid(f"dimensions is {request.dimensions}; accepted is at most {size}", "dimensions")
        add_special = request.add_special_tokens is not False
        given = self._contents(request.input, "input")
        prompts = tuple(self._prompt(content, place, add_special) for content, place in given)
        self._check_priority(request.priority)
        return self._checked(Prepared(request, NOTHING_NEW, prompts, form_of(given[0][0])))

    def check_model(self, name: str | None) -> None:
        """See ModelFacts.adapter_of."""
        self.facts.adapter_of(name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        arguments: dict[str, Any] | None,
        use: ToolUse | None = None,
    ) -> str:
        """The checkpoint's chat template over plain messages, with the tools there are.

        Raises ApiError 400, or 500 if it does not compile.
        """
        if len(messages) > self.limits.messages:
            raise invalid(
                f"messages has more than {self.limits.messages} entries, those of a session included", "messages"
            )
        goes_on = bool(continue_final_message)
        if goes_on and add_generation_prompt:
            raise invalid(
                "continue_final_message and add_generation_prompt cannot both be true", "continue_final_message"
            )
        try:
            messages, tools = self.facts.forms.shown(messages, use)
            return self.facts.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=not goes_on and add_generation_prompt is not False,
                template_arguments=arguments,
                continue_final_message=goes_on,
            )
        except ConfigError as error:
            raise invalid(str(error), "messages", "chat_template_error") from None
        except ChatTemplateError as error:
            raise broken_template(error.sentence) from None

    def encode(self, text: str, param: str, *, add_special: bool, last: int | None = None) -> tuple[int, ...]:
        """Token ids of a text, of which no more is read than fits. Raises ApiError 400.

        last: only so many of its last tokens, and the beginning-of-sequence token if there is one.
        """
        most, tokenizer = self.facts.max_model_len, self.facts.tokenizer
        if last is not None:
            text = text[-max(self.facts.most_characters * (last + 16) // most, LEAST_CHARACTERS) :]
        elif len(text) > self.facts.most_characters:
            raise text_too_long(len(text), most, param)
        try:
            ids = tokenizer.encode_within(text, self.facts.most_characters if last else most, add_special)
        except ConfigError as error:
            raise invalid(str(error), param) from None
        if ids is None:
            raise text_too_long(len(text), most, param)
        return truncated(ids, last, tokenizer.bos_token_id)

    def samples(self, prepared: Prepared, salt: bytes, timeout_s: float | None) -> list[Sample]:
        """One engine request per prompt and sample, checked, not sent; ``salt`` is the key's. Raises ApiError 400."""
        request = prepared.request
        terms = Terms(
            default_max_tokens=self.facts.default_max_tokens,
            timeout_s=timeout_s,
            priority=request.priority or 0,
            tenant=salt,
            cache_salt=narrower_salt(salt, request.cache_salt),
            grammar=prepared.grammar,
            shown=frozenset() if prepared.answer is None else prepared.answer.shown,
            adapter=self.facts.adapter_of(request.model),
        )
        try:
            if isinstance(request, EmbeddingRequest):
                return self.facts.requests.embedding(prepared.prompts, request.pooling, terms)
            return self.facts.requests.samples(prepared.prompts, prepared.params, terms)
        except ParameterError as error:
            raise parameter_error(error, parameter_names(request)) from None
        except ConfigError as error:
            raise invalid(str(error)) from None

    def _contents(self, value: Any, name: str) -> list[tuple[str | tuple[int, ...], str]]:
        """The prompts in the parameter ``name``, each a text or ids that exist, with their places."""
        return [(self._content(entry, place), place) for entry, place in self._prompts(value, name)]

    def _prompts(self, value: Any, name: str) -> list[tuple[Any, str]]:
        """The prompts in the parameter ``name`` with their places: a text, token ids, or a list of either."""
        if isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], (str, list))):
            return [(value, name)]
        if not isinstance(value, list) or not value:
            raise invalid(f"{name} must be a text, a list of token ids, or a list of either", name, "invalid_type")
        if len(value) > self.limits.prompts:
            raise invalid(f"{name} has more than {self.limits.prompts} entries, the most this server accepts", name)
        return [(entry, f"{name}[{index}]") for index, entry in enumerate(value)]

    def _whole(self, request: GenerationRequest, visit: Visit, form: Form, new: Any) -> Any:
        """What the session holds, or the modules, and what is new."""
        return self.modules.whole(
            visit, form, new, request.session, request.prompt_modules or (), request.session_turns
        )

    def _prompt(self, content: Any, place: str, add_special: bool, last: int | None = None) -> PreparedPrompt:
        if isinstance(content, str):
            return PreparedPrompt(content, self.encode(content, place, add_special=add_special, last=last))
        content = truncated(content, last, self.facts.tokenizer.bos_token_id)
        return PreparedPrompt(self.facts.tokenizer.decode(content, skip_special_tokens=False), content)

    def _last(self, request: GenerationRequest, params: SamplingParams) -> int | None:
        """``truncate_prompt_tokens``; -1: as many as fit beside the answer."""
        wanted = request.truncate_prompt_tokens
        if wanted is None:
            return None
        if wanted == 0:
            raise invalid(
                "truncate_prompt_tokens is 0; accepted is -1 (what fits) or at least 1", "truncate_prompt_tokens"
            )
        if request.session is not None or request.prompt_modules:
            raise invalid(
                "truncate_prompt_tokens is not accepted with a session or prompt_modules: what they hold stays whole",
                "truncate_prompt_tokens",
            )
        most = self.facts.max_model_len
        room = max(most - (1 if params.max_tokens is None else params.max_tokens), 1)
        if wanted > most:
            raise invalid(f"truncate_prompt_tokens is {wanted}; accepted is at most {most}", "truncate_prompt_tokens")
        return room if wanted == -1 else wanted

    def _without_bad_words(self, request: GenerationRequest, params: SamplingParams) -> SamplingParams:
        """Each of ``bad_words`` is one token, at the beginning of a word or within one, and gets the lowest bias."""
        biases = dict(params.logit_bias)
        for index, word in enumerate(request.bad_words or ()):
            forms = [self.facts.tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}") if word]
            ids = [form[0] for form in forms if len(form) == 1]
            if not ids:
                place = f"bad_words[{index}]"
                raise unsupported(place, f"{place} is not supported: a word that is not one token cannot be kept out")
            biases |= dict.fromkeys(ids, LOWEST_BIAS)
        return replace(params, logit_bias=biases) if request.bad_words else params

    def _template_arguments(self, request: ChatRequest) -> dict[str, Any] | None:
        """``chat_template_kwargs``, and ``reasoning_effort`` as the template knows it."""
        effort, given = request.reasoning_effort, request.chat_template_kwargs
        if effort is None:
            return given
        sources = "".join(self.facts.tokenizer.templates.sources.values())
        if "reasoning_effort" in sources:
            return {"reasoning_effort": effort, **(given or {})}
        if "enable_thinking" in sources:
            return {"enable_thinking": effort != "none", **(given or {})}
        if effort == "none":
            return given
        reason = "reasoning_effort is not supported: this model's template has no switch for it"
        raise unsupported("reasoning_effort", reason)

    def _check_priority(self, priority: int | None) -> None:
        """Nothing is ignored silently."""
        policy = self.facts.facts.scheduling.policy
        if priority and policy != "priority":
            reason = f"priority is not supported under the policy {policy}; it takes --scheduling-policy priority"
            raise unsupported("priority", reason)

    def _content(self, value: Any, place: str) -> str | tuple[int, ...]:
        if isinstance(value, str):
            return value
        most = self.facts.vocabulary_size
        value = [whole(token) for token in value] if isinstance(value, list) else value
        if not isinstance(value, list) or not all(type(token) is int and 0 <= token < most for token in value):
            raise invalid(f"{place} must be a text or a list of token ids from 0 to {most - 1}", place)
        return tuple(value)

    def _checked(self, prepared: Prepared) -> Prepared:
        """Every prompt has tokens, and room for an answer."""
        chat = isinstance(prepared.request, ChatRequest)
        name = "input" if isinstance(prepared.request, EmbeddingRequest) else "prompt"
        for index, prompt in enumerate(prepared.prompts):
            place = "messages" if chat else name if len(prepared.prompts) == 1 else f"{name}[{index}]"
            if not prompt.token_ids:
                raise invalid(f"{place} has no tokens; at least one is needed", place)
            try:
                self.facts.requests.check_length(len(prompt.token_ids), prepared.params)
            except LengthError as error:
                raise too_long(error, parameter_names(prepared.request) | {"prompt": place}) from None
        return prepared
