# SPDX-License-Identifier: Apache-2.0
"""``LLM``: a model directory opened for use. Text or token ids in, text, tokens and log-probabilities out."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linnet.api.adapters import Adapters, with_room
from linnet.api.chats import Answering, answering
from linnet.api.describe import machine_record, scheme_name, warn_of_tokenizer
from linnet.api.embedding import embedding_of
from linnet.api.generation import Dispatcher, Progress, TokensDone, request_output
from linnet.api.loading import load
from linnet.api.moderation import Moderate
from linnet.api.modules import PromptModules
from linnet.api.opened import OpenedModel
from linnet.api.output import Piece, RequestOutput
from linnet.api.prompts import (
    PreparedPrompt,
    Prompt,
    is_conversation,
    plain_prompts,
    prepare_params,
    prepare_prompt,
    prepare_prompts,
)
from linnet.api.requests import RequestBuilder, Terms
from linnet.api.sampling_defaults import CHAT_MAX_TOKENS, SamplingDefaults, read_sampling_defaults
from linnet.api.scoring import Comparison, score_rows
from linnet.api.served import ServedModel
from linnet.api.sessions import Content, Sessions, Turn, check_answered, check_single, form_of
from linnet.api.structured import StructuredOutput
from linnet.api.tools import ModelForms
from linnet.api.tools.asked import linked, tool_use
from linnet.api.warming import Warming
from linnet.backends.interface import KVCache, Policy
from linnet.engine import (
    CompiledGrammars,
    EngineThread,
    ParameterError,
    Pooling,
    PromptScores,
    SamplingParams,
)
from linnet.errors import ConfigError
from linnet.plan import TOKENIZER_READING, server_growth_bytes
from linnet.scheduler import SchedulerCounters
from linnet.schemes import LinearScheme
from linnet.settings import BackendSettings, EngineSettings, SessionLimits, with_fields
from linnet.text import Tokenizer
from linnet.text.files import tokenizer_json_bytes


class LLM(OpenedModel):
    """See the module. Use from one thread; ``close`` (or a with block) releases the mapped files."""

    def __init__(
        self,
        path: str | Path,
        *,
        policy: Policy = "fast",
        kv_cache: KVCache = "auto",
        quantize: str | None = None,
        generation_config: str | Path = "auto",
        backend: BackendSettings | str = "auto",
        engine: EngineSettings | None = None,
        keep: Sequence[str] = (),
        clock: Callable[[], datetime] = datetime.now,
        seed_source: Callable[[], int] = lambda: secrets.randbits(64),
        moderate: Moderate | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **settings: Any,
    ) -> None:
        """Open a model directory.

        policy:          numerics: 'fast' or 'exact'.
        kv_cache:        what the KV cache stores: 'fp32', 'bf16', 'int8', 'fp8', 'int4'; 'auto': what the checkpoint
                         prescribes, else the policy's choice.
        quantize:        a scheme (``W8A16``, ``W4A16-g32`` …) in which a dense model's linears are rounded to nearest
                         while they are loaded; what is loaded is kept in the tile cache.
        generation_config: whose sampling defaults hold where a call gives no params: 'auto': those of the directory's
                         generation_config.json, 'none', or the folder of another one.
        backend, engine: who executes, and what may be spent; see the records. A backend may be its name alone.
        keep:            values to be read after a step (``Executable.tap``).
        clock:           what strftime_now shows to chat templates; seed_source: seeds of unseeded requests.
        moderate:        sees every text before it is returned and may end it (``api.moderation``).
        adapters:        LoRA adapters (PEFT directories) by the names that calls give them (``self.adapters`` loads and
                         unloads more, where max_adapters leaves room).
        settings:        single fields of the two records, for short calls: ``LLM(path, max_model_len=256, threads=2)``.

        Raises CheckpointError, UnsupportedError, ConfigError, CapacityError.
        """
        self.path = Path(path)
        named = BackendSettings(name=backend) if isinstance(backend, str) else backend
        own, engine = with_fields(named, engine or EngineSettings(), settings)
        given = {name: Path(path) for name, path in (adapters or {}).items()}
        engine = with_room(engine, given.values())
        loaded = load(
            self.path, policy=policy, kv_cache=kv_cache, quantize=quantize, keep=keep, backend=own, engine=engine
        )
        tokenizer_bytes = tokenizer_json_bytes(self.path)
        warming = Warming(loaded.executable.mapped, TOKENIZER_READING * tokenizer_bytes)
        tokenizer = Tokenizer.open(self.path, clock=clock)
        warming.finish()
        self.source = loaded.source
        self.checkpoint = loaded.source.checkpoint
        self.executable = loaded.executable
        self.backend_name = loaded.backend_name
        self._numerics = loaded.executable.numerics
        self.policy = policy
        self.footprint = replace(loaded.footprint, server_bytes=server_growth_bytes(tokenizer_bytes))
        warn_of_tokenizer(self.path, tokenizer, loaded.source.spec.vocabulary_size)
        self._grammars = CompiledGrammars(lambda: self.requests.vocabulary)
        self._engine = loaded.open_engine(engine.check, self._grammars)
        self._generation_config = generation_config
        self.requests = RequestBuilder(tokenizer, self._engine.facts, seed_source, moderate)
        self._dispatcher = Dispatcher(self._engine)
        self.modules = PromptModules(self.tokenizer)
        """Named texts that prompts may begin with; their keys and values are kept."""
        self.sessions = Sessions(SessionLimits(), tell=self._engine.handle)
        """Conversations that go on."""
        self.adapters = Adapters(self._engine.facts.adapters, self._engine.handle, lambda: self._engine.adapters.in_use)
        """LoRA adapters, by the names that ``generate`` and others take."""
        try:
            for name, path in given.items():
                self.adapters.load(name, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the KV cache and the model and unmap its files; later calls are refused. Idempotent."""
        if self.executable is None:
            return
        self._engine.close()
        self._grammars.close()
        self.executable = None  # type: ignore[assignment]
        self.checkpoint.close()

    # What this model is.

    @property
    def name(self) -> str:
        """The directory's name, never its path."""
        return self.path.resolve().name

    @property
    def numerics_id(self) -> str:
        """Build, ISA tier, policy and program: equal ids promise equal bits. Known after ``close`` too."""
        return self._numerics.id

    @property
    def parameters(self) -> int:
        """How many numbers the model has, whatever they are stored as."""
        return self.source.parameters

    @cached_property
    def sampling_defaults(self) -> SamplingDefaults:
        """What the checkpoint recommends, under ``generation_config``. Raises CheckpointError, ConfigError."""
        return read_sampling_defaults(self.path, self._generation_config)

    def linear_scheme_names(self) -> list[str]:
        """For every linear of the model, how it is stored: ``int4 group 32``, ``dense``; a tied head as its table."""
        stored = {weight.ref.checkpoint_name: weight.dtype for weight in self.source.program.weights}
        found = [stored[linear.tensor] for linear in self.source.linears()]
        return [scheme_name(scheme if isinstance(scheme, LinearScheme) else None) for scheme in found]

    def kernels(self) -> dict[str, int]:
        """Kernel name -> how many ops were bound to it at load, by name."""
        return dict(sorted(Counter(self.executable.choices.values()).items()))

    def machine(self) -> dict[str, str]:
        """What the numbers were measured on, for Reports."""
        return {**machine_record(), "backend": self.backend_name, "numerics": self.numerics_id}

    @cached_property
    def forms(self) -> ModelForms:
        """How it writes calls and thoughts, found from its chat template. Others may be put in their place:
        ``llm.forms = ModelForms(llm.tokenizer, "hermes")``."""
        return ModelForms(self.tokenizer)

    # Its engine.

    def served(self) -> ServedModel:
        """What a server needs of it, with the engine in a thread of its own. Nothing else may be called then."""
        return ServedModel(
            requests=self.requests,
            sampling_defaults=self.sampling_defaults,
            numerics_id=self.numerics_id,
            footprint=self.footprint,
            connect=lambda deliver: EngineThread(self._engine, deliver),
        )

    def counters(self) -> SchedulerCounters:
        """What the engine is doing and has done, in numbers."""
        return self._engine.counters()

    @property
    def stepping(self) -> bool:
        """Whether a step is being computed, in whatever thread: the model's memory is in use then."""
        return self._engine.stepping

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        self._engine.forget_prefixes()

    # Generating.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        session: str | None = None,
        prompt_modules: Sequence[str] = (),
        structured: StructuredOutput | None = None,
        adapter: str | Sequence[str | None] | None = None,
        progress: Progress | None = None,
        tokens_done: TokensDone | None = None,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many (texts or token ids); results are in the order of the prompts.

        Without ``params`` the checkpoint's recommendations hold (``sampling_defaults``); given ones hold as they are.
        ``session``: one prompt, which goes on from all that the session holds (``self.sessions``; a new id begins one).
        ``prompt_modules``: names of texts (``add_prompt_module``) that stand before each prompt. ``structured``: what
        every answer is to look like. ``adapter``: name of the adapter that the prompts go through, or one for each.
        Raises ConfigError for a prompt or parameter that can never run here, before anything has been computed, and
        LinnetError when the model gives no usable distribution. ``progress`` and ``tokens_done`` may raise to cancel.
        """
        most = self.sampling_defaults.max_tokens if params is None else None
        news = plain_prompts(prompts)
        through = self._through(adapter, len(news))
        with self._conversing(news, session, prompt_modules, self._encoded, through) as (prepared, turn):
            chosen = prepare_params(params, len(prepared), self._recommended)
            grammar = self._grammar(structured)
            terms = Terms(default_max_tokens=most, timeout_s=timeout_s, grammar=grammar)
            return self._complete(prepared, chosen, through, progress, terms, tokens_done, turn)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        structured: StructuredOutput | None = None,
        adapter: str | None = None,
        timeout_s: float | None = None,
        default_max_tokens: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Complete one prompt; pieces come as they become certain, the last of each sample with a finish_reason.

        Without ``params`` as in ``generate``. Closing the iterator aborts the request, and so does ``cancelled``, which
        is asked between two steps; then no piece has a finish_reason. ``default_max_tokens`` bounds the answer where
        the params name no max_tokens, as far as there is room.
        """
        prepared = prepare_prompts(prompt, self.tokenizer) or [PreparedPrompt(None, ())]
        if len(prepared) != 1:
            raise ParameterError("prompt", f"one prompt can be streamed at a time; {len(prepared)} were given")
        most = self.sampling_defaults.max_tokens if params is None else default_max_tokens
        chosen = self._recommended() if params is None else params
        grammar, through = self._grammar(structured), self.adapters.number(adapter)
        terms = Terms(default_max_tokens=most, timeout_s=timeout_s, grammar=grammar, adapter=through)
        samples = self.requests.samples(prepared, chosen, terms)
        return self._dispatcher.stream(samples, cancelled)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        template: str | None = None,
        continue_final_message: bool = False,
        session: str | None = None,
        prompt_modules: Sequence[str] = (),
        structured: StructuredOutput | None = None,
        adapter: str | Sequence[str | None] | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them through the checkpoint's chat template.

        Without ``params`` as in ``generate``. Where no max_tokens is given an answer ends after what the checkpoint
        recommends, else after CHAT_MAX_TOKENS, or where the context is full.

        ``message`` of each completion is what the answer comes to: what is said, thought and called, told apart as the
        server does it (``forms``), to be appended to the messages. ``tools``: functions as OpenAI's API describes them,
        that the model may call under ``tool_choice`` (``"auto"``, ``"required"``, ``"none"``, or a function's name as
        an object); arguments fit their schemas. The results follow as messages of the role ``tool``.
        ``session``: the messages go on from all that the session holds (``self.sessions``; a new id begins one), and
        are its next turn if they are answered. ``prompt_modules``: names of texts (``add_prompt_module``) that form the
        system message, before one that is given; in a session, of its first turn. ``structured`` and ``adapter`` as in
        ``generate``.
        """
        use = tool_use(tools, tool_choice, parallel_tool_calls)
        conversations = [messages] if is_conversation(messages) or not messages else messages
        if session is not None:
            check_answered(add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)

        def encoded(conversation: Content) -> PreparedPrompt:
            shown, described = self.forms.shown(linked(conversation), use)  # type: ignore[arg-type]
            text = self.tokenizer.apply_chat_template(
                shown,
                add_generation_prompt=add_generation_prompt,
                tools=described,
                documents=documents,
                template_arguments=template_arguments,
                template=template,
                continue_final_message=continue_final_message,
            )
            return PreparedPrompt(text, tuple(self.tokenizer.encode_chat(text)))

        news: list[Content] = [tuple(conversation) for conversation in conversations]  # type: ignore[misc]
        through = self._through(adapter, len(news))
        with self._conversing(news, session, prompt_modules, encoded, through) as (prompts, turn):
            chosen = prepare_params(params, len(prompts), self._recommended)
            bounded = any(one.max_tokens is None for one in chosen)
            most = (self.sampling_defaults.max_tokens or CHAT_MAX_TOKENS) if bounded else None
            terms = Terms(default_max_tokens=most, timeout_s=timeout_s)
            answers = [
                answering(self.forms, prompt.text or "", use, structured, self._check, continue_final_message)
                for prompt in prompts
            ]
            return self._complete(prompts, chosen, through, progress, terms, turn=turn, answers=answers)

    def add_prompt_module(self, name: str, text: str) -> None:
        """Name a text that prompts may begin with (``prompt_modules=[name, …]`` of ``generate`` and ``chat``).

        What comes out is what came out if the text stood in the prompt; it is computed the first time and kept. Raises
        ConfigError for a name that is odd or taken, and for an empty text.
        """
        self.modules.add(name, text)

    # Embedding.

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling | None = None,
        normalize: bool = False,
        adapter: str | None = None,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """What the model holds of each prompt (text or token ids) after its last norm: float32 [hidden size].

        pooling: of the ``last`` token, the ``mean`` of all tokens, or of the first (``cls``); None: what the checkpoint
        says (``1_Pooling``), else the last where tokens see only what comes before them, and the mean where they see
        all. normalize: to length 1. Raises ConfigError as ``generate`` does, and where there are no hidden states.
        """
        terms = Terms(adapter=self.adapters.number(adapter))
        samples = self.requests.embedding(prepare_prompts(prompts, self.tokenizer), pooling, terms)
        self._dispatcher.run([[sample] for sample in samples], progress)
        return [embedding_of(sample, normalize) for sample in samples]

    # Scoring.

    def score(
        self, rows: Sequence[Sequence[int]], *, starts: Sequence[int] | None = None, progress: Progress | None = None
    ) -> list[np.ndarray]:
        """Log-probabilities (natural, float32) of each row's tokens given those before them.

        Entry i of a result is about position ``start + i``; ``starts`` default to 1, the first token that has a
        context. Raises ConfigError for empty rows, ids outside the vocabulary and rows beyond the context.
        """
        return [scores.logprobs for scores in self.score_details(rows, starts=starts, progress=progress)]

    def score_details(
        self,
        rows: Sequence[Sequence[int]],
        *,
        starts: Sequence[int] | None = None,
        top_logprobs: int = 0,
        progress: Progress | None = None,
    ) -> list[PromptScores]:
        """As ``score``, with the greedy token, the rank of the row's token and ``top_logprobs`` alternatives."""
        samples = self.requests.scoring(rows, starts, top_logprobs, compare=False)
        return score_rows(self._dispatcher, samples, progress)

    def compare(
        self,
        reference: "LLM",
        rows: Sequence[Sequence[int]],
        *,
        starts: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Comparison]:
        """Run this model and ``reference`` on the same rows in lockstep; full logits never leave the backend.

        Both must be idle, on the same backend, and share a vocabulary. Their prefix caches are emptied, since the
        comparison uses their KV memory.
        """
        if reference.backend_name != self.backend_name:
            raise ConfigError(
                f"{self.name} runs on backend {self.backend_name}, {reference.name} on {reference.backend_name}; only "
                "models on one backend can be compared"
            )
        for llm in (self, reference):
            if llm._engine.has_work:
                raise ConfigError(f"{llm.name} has unfinished requests; a comparison needs both models idle")
        both = self._engine.in_lockstep(reference._engine)
        samples = self.requests.for_engine(both.facts).scoring(rows, starts, 0, compare=True)
        return [Comparison.of(scores) for scores in score_rows(Dispatcher(both), samples, progress)]

    # How it is done.

    def _recommended(self) -> SamplingParams:
        return self.sampling_defaults.params({})

    def _through(self, adapter: str | Sequence[str | None] | None, prompts: int) -> list[int | None]:
        """The adapter of each prompt. Raises UnknownAdapterError, and ConfigError for another number of them."""
        names = [adapter] * prompts if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != prompts:
            raise ConfigError(f"{len(names)} adapters were given for {prompts} prompts; give one for all or for each")
        return [self.adapters.number(name) for name in names]

    def _encoded(self, content: Content) -> PreparedPrompt:
        return prepare_prompt(content, self.tokenizer)  # type: ignore[arg-type]

    @contextmanager
    def _conversing(
        self,
        news: Sequence[Content],
        session: str | None,
        prompt_modules: Sequence[str],
        encoded: Callable[[Content], PreparedPrompt],
        through: Sequence[int | None],
    ) -> Iterator[tuple[list[PreparedPrompt], Turn | None]]:
        """The prompts of whole conversations, each of a session's content or modules and what is new; and the turn."""
        if session is not None and len(news) != 1:
            raise ParameterError("session", f"{len(news)} prompts were given; a session's turn is one")
        with closing(self.sessions.visit(b"")) as visit:
            prompts: list[PreparedPrompt] = []
            turn: Turn | None = None
            for new, adapter in zip(news, through, strict=True):
                form = form_of(new)
                whole = self.modules.whole(visit, form, new, session, prompt_modules)
                prompts.append(self.modules.mark(encoded(whole), form, visit.modules))
                if visit.modules:
                    self._engine.handle(self.modules.kept(prompts[-1], form, visit.modules, b"", adapter))
                turn = None if session is None else Turn(visit, form, whole)
            yield prompts, turn

    def _grammar(self, structured: StructuredOutput | None) -> str | None:
        """As the engine takes it, when it is known that it can be used. Raises GrammarError."""
        if structured is None:
            return None
        grammar = structured.description()
        self._check(grammar)
        return grammar

    def _check(self, grammar: str) -> None:
        self._grammars.matcher(grammar).result()

    def _complete(
        self,
        prompts: Sequence[PreparedPrompt],
        params: Sequence[SamplingParams],
        through: Sequence[int | None],
        progress: Progress | None,
        terms: Terms,
        tokens_done: TokensDone | None = None,
        turn: Turn | None = None,
        answers: Sequence[Answering] = (),
    ) -> list[RequestOutput]:
        """``answers``: of each prompt of a chat."""
        if turn is not None:
            check_single(params[0].n)
        own = [replace(terms, grammar=one.grammar, shown=one.shown) for one in answers] or [terms] * len(prompts)
        requests = [
            self.requests.samples([prompt], one, replace(under, adapter=adapter))
            for prompt, one, under, adapter in zip(prompts, params, own, through, strict=True)
        ]
        self._dispatcher.run(requests, progress, tokens_done)
        if turn is not None:
            turn.take(requests[0][0], answers[0].message(requests[0][0]) if answers else None)
        return [
            request_output(prompt, samples, answers[index].message if answers else None)
            for index, (prompt, samples) in enumerate(zip(prompts, requests, strict=True))
        ]
