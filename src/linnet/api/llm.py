# SPDX-License-Identifier: Apache-2.0
"""``LLM``: a model directory opened for use. Text or token ids in, text, tokens and log-probabilities out."""

import itertools
import platform
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from linnet.api.loading import load
from linnet.api.output import Piece, RequestOutput, SampleStream
from linnet.api.prompts import PreparedPrompt, Prompt, is_conversation, prepare_params, prepare_prompts, token_row
from linnet.backends.interface import Policy
from linnet.engine import (
    Engine,
    EngineEvent,
    Finished,
    Lockstep,
    MatcherFactory,
    ParameterError,
    PromptScores,
    SamplingParams,
    Submit,
    Tokens,
    derive_seed,
)
from linnet.errors import CapacityError, ConfigError, LinnetError
from linnet.schemes.scheme import LinearScheme
from linnet.text import Tokenizer

Progress = Callable[[int, int], None]
"""(done, total) in prompts or rows; called after each one."""

SCORING = SamplingParams(max_tokens=0, prompt_logprobs=0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row under two models, from position ``start`` on. KL is KL(reference || this), in nats, whole vocabulary."""

    kl: np.ndarray  # float32
    logprobs: np.ndarray  # float32: of the row's own tokens under this model
    reference_logprobs: np.ndarray  # float32
    greedy: np.ndarray  # int32: most likely token under this model
    reference_greedy: np.ndarray  # int32

    @property
    def agree(self) -> np.ndarray:
        """Bool: both models rank the same token first."""
        return self.greedy == self.reference_greedy


class LLM:
    """See the module. Use from one thread; ``close`` (or a with block) releases the mapped files."""

    def __init__(
        self,
        path: str | Path,
        *,
        policy: Policy = "fast",
        backend: str = "auto",
        max_model_len: int | None = None,
        kv_bytes: int | None = None,
        num_blocks: int | None = None,
        block_size: int = 16,
        token_budget: int = 512,
        max_sequences: int = 64,
        max_chunk_tokens: int | None = None,
        prefix_cache: bool = True,
        scheduling: str = "fcfs",
        max_waiting_requests: int = 1024,
        preempt_every: int | None = None,
        threads: int | None = None,
        isa: str | None = None,
        keep: Sequence[str] = (),
        check: bool = False,
        clock: Callable[[], datetime] = datetime.now,
        seed_source: Callable[[], int] = lambda: secrets.randbits(64),
        matcher_factory: MatcherFactory | None = None,
    ) -> None:
        """Open a model directory.

        policy:          numerics: 'fast' or 'exact'.
        backend:         'auto', 'cpu' or 'reference'; threads and isa configure the cpu backend.
        max_model_len:   longest prompt + new tokens; None: the model's, shortened to what the KV memory holds.
        kv_bytes:        memory of the KV cache; None: a share of what is free. num_blocks overrides it (tests).
        token_budget:    tokens computed in one step, over all requests; max_sequences: requests in one step.
        preempt_every, check: test modes: forced preemption, invariants proved in every step.
        clock:           what strftime_now shows to chat templates; seed_source: seeds of unseeded requests.

        Raises CheckpointError, UnsupportedError, ConfigError, CapacityError.
        """
        self.path = Path(path)
        self.tokenizer = Tokenizer.from_directory(self.path, clock=clock)
        loaded = load(
            self.path,
            policy=policy,
            backend=backend,
            max_model_len=max_model_len,
            kv_bytes=kv_bytes,
            num_blocks=num_blocks,
            block_size=block_size,
            token_budget=token_budget,
            max_sequences=max_sequences,
            max_chunk_tokens=max_chunk_tokens,
            prefix_cache=prefix_cache,
            preempt_every=preempt_every,
            scheduling=scheduling,
            max_waiting_requests=max_waiting_requests,
            threads=threads,
            isa=isa,
            keep=keep,
        )
        self.source = loaded.source
        self.checkpoint = loaded.source.checkpoint
        self.executable = loaded.executable
        self.backend_name = loaded.backend_name
        self.policy = policy
        self.engine = Engine(loaded.executable, loaded.config, matcher_factory=matcher_factory, check=check)
        self._seed_source = seed_source
        self._check = check
        self._ids = itertools.count()
        self._streams: dict[int, _Sample] = {}

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the mapped files. The LLM must not be used afterwards. Idempotent."""
        self.checkpoint.close()

    # What this model is.

    @property
    def name(self) -> str:
        """The directory's name, never its path."""
        return self.path.resolve().name

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits (the tokenizer may know fewer ids)."""
        return self.engine.vocabulary_size

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus new tokens."""
        return self.engine.config.max_model_len

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self.engine.config.num_blocks * self.executable.kv_bytes_per_block

    @property
    def parameters(self) -> int:
        """How many numbers the model has, whatever they are stored as."""
        return self.source.parameters

    @property
    def numerics_id(self) -> str:
        """Build, ISA tier, policy and program: equal ids promise equal bits."""
        return self.executable.numerics_id

    def linear_scheme_names(self) -> list[str]:
        """For every linear of the model, how it is stored: ``int4 group 32``, ``bf16``."""
        names = []
        for linear in self.source.linears():
            scheme = self.checkpoint.scheme_of(linear.module)
            names.append("dense" if scheme is None else _scheme_name(scheme))
        return names

    def machine(self) -> dict[str, str]:
        """What the numbers were measured on, for Reports."""
        return {
            "platform": platform.system().lower(),
            "machine": platform.machine(),
            "processor": _processor(),
            "python": platform.python_version(),
            "backend": self.backend_name,
            "numerics": self.numerics_id,
        }

    # Generating.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many (texts or token ids); results are in the order of the prompts.

        Raises ConfigError for a prompt or parameter that can never run here, before anything has been computed, and
        LinnetError when the model gives no usable distribution. ``progress`` may raise to cancel.
        """
        prepared = prepare_prompts(prompts, self.tokenizer)
        chosen = prepare_params(params, len(prepared))
        requests = [self._samples(prompt, one, timeout_s) for prompt, one in zip(prepared, chosen, strict=True)]
        self._run([sample for samples in requests for sample in samples], progress, len(requests), requests)
        return [_request_output(prompt, samples) for prompt, samples in zip(prepared, requests, strict=True)]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, timeout_s: float | None = None
    ) -> Iterator[Piece]:
        """Complete one prompt; pieces come as they become certain, the last of each sample with a finish_reason.

        Closing the iterator aborts the request.
        """
        prepared = prepare_prompts(prompt, self.tokenizer)
        if len(prepared) != 1:
            raise ParameterError("prompt", f"stream takes one prompt, not {len(prepared)}")
        samples = self._samples(prepared[0], params or SamplingParams(), timeout_s)
        return self._stream(samples)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        template: str | None = None,
        continue_final_message: bool = False,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them through the checkpoint's chat template."""
        conversations = [messages] if is_conversation(messages) or not messages else messages
        texts = [
            self.tokenizer.apply_chat_template(
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                documents=documents,
                template_arguments=template_arguments,
                template=template,
                continue_final_message=continue_final_message,
            )
            for conversation in conversations
        ]
        prompts = [PreparedPrompt(text, tuple(self.tokenizer.encode_chat(text))) for text in texts]
        chosen = prepare_params(params, len(prompts))
        requests = [self._samples(prompt, one, timeout_s) for prompt, one in zip(prompts, chosen, strict=True)]
        self._run([sample for samples in requests for sample in samples], progress, len(requests), requests)
        return [_request_output(prompt, samples) for prompt, samples in zip(prompts, requests, strict=True)]

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
        params = SCORING if not top_logprobs else SamplingParams(max_tokens=0, prompt_logprobs=top_logprobs)
        return _score(self.engine, self._ids, rows, starts, progress, params, compare=False)

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
            if llm.engine.has_work:
                raise ConfigError(f"{llm.name} has unfinished requests; a comparison needs both models idle")
            llm.engine.forget_prefixes()
        lockstep = Lockstep(reference.executable, reference.engine.states)
        engine = Engine(
            self.executable,
            _common_config(self.engine.config, reference.engine.config),
            states=self.engine.states,
            lockstep=lockstep,
            check=self._check,
        )
        results = _score(engine, itertools.count(), rows, starts, progress, SCORING, compare=True)
        return [_comparison(scores) for scores in results]

    # How it is done.

    def _samples(self, prompt: PreparedPrompt, params: SamplingParams, timeout_s: float | None) -> list["_Sample"]:
        """The samples of a prompt as messages, not yet sent. Raises before anything is computed."""
        room = self.max_model_len - len(prompt.token_ids)
        if params.max_tokens is None and room < 1 and params.prompt_logprobs is None:
            raise ParameterError(
                "prompt",
                f"the prompt has {len(prompt.token_ids)} tokens; the context holds {self.max_model_len} tokens "
                "(max_model_len), new ones included",
            )
        stop_token_ids = stop_ids(params, self.tokenizer, self.vocabulary_size)
        seed = self._seed_source() if params.seed is None else params.seed
        samples = []
        for index in range(params.n):
            submit = Submit(
                request_id=next(self._ids),
                prompt_token_ids=prompt.token_ids,
                params=params,
                max_tokens=max(room, 0) if params.max_tokens is None else params.max_tokens,
                stop_token_ids=stop_token_ids,
                seed=derive_seed(seed, index),
                timeout_s=timeout_s,
            )
            self.engine.validate(submit)
            samples.append(_Sample(submit, SampleStream(self.tokenizer, params, stop_token_ids, index)))
        return samples

    def _run(
        self,
        samples: Sequence["_Sample"],
        progress: Progress | None,
        total: int,
        requests: Sequence[Sequence["_Sample"]],
    ) -> None:
        waiting = deque(samples)
        left = {id(sample): group for group in requests for sample in group}
        open_samples = [len(group) for group in requests]
        group_index = {id(group): index for index, group in enumerate(requests)}
        done = 0
        try:
            while waiting or any(sample.open for sample in samples):
                self._send(waiting)
                for sample in self._step():
                    group = left.get(id(sample))
                    if group is None:
                        continue  # finished, but of another call that streams meanwhile
                    index = group_index[id(group)]
                    open_samples[index] -= 1
                    if open_samples[index] == 0:
                        done += 1
                        if progress is not None:
                            progress(done, total)
        finally:
            self._abandon(samples)

    def _stream(self, samples: list["_Sample"]) -> Iterator[Piece]:
        waiting = deque(samples)
        try:
            while waiting or any(sample.open or sample.pieces for sample in samples):
                self._send(waiting)
                if not any(sample.pieces for sample in samples):
                    self._step()
                for sample in samples:
                    while sample.pieces:
                        yield sample.pieces.popleft()
                    sample.raise_error()
        finally:
            self._abandon(samples)

    def _send(self, waiting: deque["_Sample"]) -> None:
        """Submit what the queue takes, keeping it short; the rest follows as others finish."""
        config = self.engine.config
        most = config.max_sequences + min(config.max_waiting_requests, config.max_sequences)
        while waiting and len(self._streams) < most:
            sample = waiting[0]
            try:
                self.engine.submit(sample.submit)
            except CapacityError:
                if not self._streams:
                    raise
                return
            waiting.popleft()
            sample.open = True
            self._streams[sample.submit.request_id] = sample

    def _step(self) -> list["_Sample"]:
        """One engine step; returns the samples that finished in it."""
        finished = []
        for event in self.engine.step():
            sample = self._streams.get(event.request_id)
            if sample is None:
                continue
            sample.take(event)
            if isinstance(event, Finished):
                del self._streams[event.request_id]
                finished.append(sample)
            elif sample.stream.stopped:
                self.engine.abort(event.request_id)
        return finished

    def _abandon(self, samples: Sequence["_Sample"]) -> None:
        """End what is still open (an error, a cancelled progress, a closed stream)."""
        for sample in samples:
            if sample.open:
                sample.open = False
                self._streams.pop(sample.submit.request_id, None)
                self.engine.abort(sample.submit.request_id)


class _Sample:
    """One engine request of a call: its message, its text, and pieces nobody has read yet."""

    def __init__(self, submit: Submit, stream: SampleStream) -> None:
        self.submit = submit
        self.stream = stream
        self.pieces: deque[Piece] = deque()
        self.open = False

    def take(self, event: EngineEvent) -> None:
        if isinstance(event, Tokens):
            self.pieces.append(self.stream.feed(event))
        else:
            self.pieces.append(self.stream.finish(event))
            self.open = False

    def raise_error(self) -> None:
        """Raise what the engine said went wrong with this request."""
        if self.stream.error is not None:
            raise LinnetError(self.stream.error.message)


def stop_ids(params: SamplingParams, tokenizer: Tokenizer, vocabulary_size: int) -> frozenset[int]:
    """Ids that end a request: the caller's, and the model's end-of-sequence ids unless ignore_eos."""
    eos = () if params.ignore_eos else tokenizer.eos_token_ids
    return frozenset(params.stop_token_ids) | {token_id for token_id in eos if token_id < vocabulary_size}


def _request_output(prompt: PreparedPrompt, samples: Sequence[_Sample]) -> RequestOutput:
    for sample in samples:
        sample.raise_error()
    first = samples[0].stream
    return RequestOutput(
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        outputs=tuple(sample.stream.completion() for sample in samples),
        prompt_logprobs=first.prompt_scores,
        cached_tokens=first.cached_tokens,
    )


def _score(
    engine: Engine,
    ids: Iterator[int],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    progress: Progress | None,
    params: SamplingParams,
    compare: bool,
) -> list[PromptScores]:
    """Score rows on an engine, a few at a time; results in the order of the rows."""
    token_rows = [token_row(row) for row in rows]
    first = [1] * len(token_rows) if starts is None else [int(start) for start in starts]
    if len(first) != len(token_rows):
        raise ConfigError(f"{len(first)} starts for {len(token_rows)} rows; give one for each")
    submits = []
    for index, (row, start) in enumerate(zip(token_rows, first, strict=True)):
        if len(row) < 2 or not 1 <= start < len(row):
            raise ConfigError(
                f"row {index} has {len(row)} tokens and start {start}; a row needs two tokens or more and a start from "
                "1 to its last position"
            )
        submit = Submit(
            request_id=next(ids), prompt_token_ids=row, params=params, max_tokens=0, compare=compare, score_start=start
        )
        engine.validate(submit)
        submits.append(submit)
    results: dict[int, PromptScores] = {}
    waiting = deque(submits)
    open_ids: set[int] = set()
    with closing(_Abandon(engine, open_ids)):
        while waiting or open_ids:
            while waiting and len(open_ids) < engine.config.max_sequences:
                submit = waiting.popleft()
                engine.submit(submit)
                open_ids.add(submit.request_id)
            for event in engine.step():
                if isinstance(event, Finished) and event.request_id in open_ids:
                    open_ids.remove(event.request_id)
                    if event.prompt_scores is None:
                        raise LinnetError(event.error.message if event.error else f"scoring ended with {event.reason}")
                    results[event.request_id] = event.prompt_scores
                    if progress is not None:
                        progress(len(results), len(submits))
    return [results[submit.request_id] for submit in submits]


class _Abandon:
    """Aborts what a failed scoring call leaves behind."""

    def __init__(self, engine: Engine, open_ids: set[int]) -> None:
        self._engine, self._open_ids = engine, open_ids

    def close(self) -> None:
        for request_id in self._open_ids:
            self._engine.abort(request_id)


def _common_config(one: Any, other: Any) -> Any:
    """Settings that both executables were prepared for. Scores need no prefix cache."""
    from dataclasses import replace

    if one.block_size != other.block_size:
        raise ConfigError(f"block sizes {one.block_size} and {other.block_size} differ; open both models alike")
    smallest = {
        name: min(getattr(one, name), getattr(other, name))
        for name in ("num_blocks", "max_model_len", "token_budget", "max_sequences")
    }
    rows = max(min(one.output_rows, other.output_rows), smallest["max_sequences"])
    return replace(one, **smallest, max_output_rows=rows, prefix_cache=False, max_chunk_tokens=None)


def _comparison(scores: PromptScores) -> Comparison:
    assert scores.kl is not None and scores.other_logprobs is not None and scores.other_greedy is not None
    return Comparison(scores.kl, scores.logprobs, scores.other_logprobs, scores.greedy, scores.other_greedy)


def _scheme_name(scheme: LinearScheme) -> str:
    weight = scheme.weight
    shared = f"group {weight.group_size}" if weight.group_size else weight.granularity
    name = f"{weight.element} {shared}" + ("" if weight.symmetric else " asymmetric")
    return name if scheme.input is None else f"{name}, {scheme.input.element} activations"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
