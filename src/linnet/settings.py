# SPDX-License-Identifier: Apache-2.0
"""What people decide about a model that is opened and a server that is started, as frozen records.

Python callers pass them, and the command line makes its options of their fields, so a setting, its type and its default
are said once. Standard library only: ``linnet --help`` reads this. Nothing here reads the environment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from linnet.errors import ConfigError, unknown_choice

ENGINES = ("process", "thread")
ENGINE_MODULE = "linnet.api.engine_child"
"""What a child process runs to become an engine (``start_child``)."""
Pooling = Literal["last", "mean", "cls"]
"""Which hidden states of a text make its embedding: that of its last token, the mean of all, or that of the first."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """Who executes a model, and how.

    name:        'auto', 'cpu' or 'reference'; threads and isa configure the cpu backend.
    threads:     workers; None: one per core.
    isa:         instruction-set tier; None: the best there is.
    tile_cache:  whether (or in which folder) large integer weights may be kept once more in the order that the kernels
                 read them, for later starts; True: the user's cache.
    large_pages: whether weights that lie in small pages of memory are read from disk anew, in large ones: slower to
                 start, a tenth to a fifth faster to decode, so what a server wants.
    """

    name: str = "auto"
    threads: int | None = None
    isa: str | None = None
    tile_cache: bool | Path = True
    large_pages: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine may spend; checked when a model is opened with it.

    max_model_len:        longest prompt + new tokens; None: the model's, shortened to what the KV memory holds.
    kv_bytes:             memory of the KV cache; None: what the model asks for, as far as there is room beside it;
                          'all': all of that room. num_blocks overrides it (tests).
    block_size:           token slots of a block of the KV cache.
    token_budget:         tokens computed in one step, over all requests; max_chunk_tokens: of one request.
    step_budget_s:        seconds a step may take while anybody is decoding (prompts are cut to fit); None: no bound.
    max_sequences:        requests in one step; max_waiting_requests: accepted beyond them.
    prefix_cache:         reuse known prefixes.
    kept_share:           of the KV cache, the most that conversations and prompt modules keep between requests.
    kv_swap_bytes:        a second store for what the KV cache has no room for, copied back instead of computed again
                          where that is faster; None or 0: none. It needs the prefix cache.
    kv_swap_dir:          it lies in a file of this folder, which goes with the engine; None: in memory.
    kv_swap_keep:         the file stays, and the next engine of the same model finds what this one has cached.
    scheduling:           order of requests: 'fcfs', 'priority', 'mlfq', 'shortest' or 'fair' (docs/scheduler.md).
    ageing_s:             waiting that long makes up for one level of priority; under 'mlfq' it is starving (30).
    predict_length:       how long 'shortest' takes answers to be: 'past' (the tenant's) or 'limit' (max_tokens).
    reserve:              what must be left free for those who run when another is admitted: 'none' but their next
                          tokens, what answers are expected to need ('past') or may need ('limit').
    max_adapters:         LoRA adapters that may be loaded at a time, those on their way out included; None: as many as
                          are given when the model is opened. Memory for all of them is counted.
    max_adapter_rank:     of each; None: the greatest of those given, 16 at the least.
    preempt_every, check: test modes: forced preemption, invariants proved in every step.
    """

    max_model_len: int | None = None
    kv_bytes: int | str | None = None
    num_blocks: int | None = None
    block_size: int = 16
    token_budget: int = 512
    step_budget_s: float | None = None
    max_sequences: int = 64
    max_chunk_tokens: int | None = None
    max_waiting_requests: int = 1024
    prefix_cache: bool = True
    kept_share: float = 0.5
    kv_swap_bytes: int | None = None
    kv_swap_dir: Path | None = None
    kv_swap_keep: bool = False
    scheduling: str = "fcfs"
    ageing_s: float | None = None
    predict_length: str = "past"
    reserve: str = "none"
    max_adapters: int | None = None
    max_adapter_rank: int | None = None
    preempt_every: int | None = None
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Caps of one request; beyond them it is refused with a sentence that names the parameter.

    samples, stops, logprobs, prompts, messages: the most of each (``n``, ``stop``, …).
    body_bytes, body_s: size of a request body, and how long it may take to arrive.
    deadline_s:         the longest a request may take, queueing included; None: no limit but the client's own.
    grammar_s:          how long a schema or grammar may take to compile.
    """

    samples: int = 128
    stops: int = 16
    logprobs: int = 20
    prompts: int = 1024
    messages: int = 4096
    body_bytes: int = 8 << 20
    body_s: float = 30.0
    deadline_s: float | None = None
    grammar_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """How many conversations are kept between turns (of one API key), and for how long after their last one."""

    max_sessions: int = 1024
    session_ttl_s: float = 3600.0

    def __post_init__(self) -> None:
        most, ttl_s = self.max_sessions, self.session_ttl_s
        if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most <= 1 << 20:
            raise ConfigError(f"max_sessions is {most!r}; accepted is 0 to {1 << 20}", settings=["max_sessions"])
        if not 0 < ttl_s <= 1e9:
            raise ConfigError(
                f"session_ttl_s is {ttl_s}; accepted is more than 0, up to 1e9 seconds", settings=["session_ttl_s"]
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server.

    host, port, uds:  where it listens: a TCP address, or a UNIX socket (then host and port are unused).
    names:            exact names that ``model`` may have; the first is the one shown in answers.
    keys:             accepted API keys; empty: no key is asked for (loopback only).
    allowed_hosts:    Host names accepted besides the loopback names and ``host`` itself.
    shutdown_s:       how long unfinished requests may run on after SIGTERM.
    stall_s:          a step longer than this makes /health say so.
    keep_alive_s:     a comment is sent into a stream that was silent that long; 0: never.
    connections:      open TCP connections at most.
    default_max_tokens: where a chat answer ends that names no number; None: what the checkpoint recommends, else 4,096.
    engine_runs_in:   where the engine runs: 'process', one of its own, or 'thread', one of the server's.
    engine_restarts:  how often within ten minutes an engine process that ended unasked is started again.
    engine_timeout_s: an engine process that computes one step for longer, or says nothing at all for ten seconds, is
                      killed and started again; 0: never.
    sessions:         conversations that are kept between their turns.
    session_dir:      a folder where they outlive the server; None: they end with it.
    adapters:         LoRA adapters (PEFT directories) by the model names that requests go through them with.
    adapters_from:    a folder whose adapters may be loaded while the server runs, with an API key; None: none may.
    prompt_modules:   names and texts that prompts may begin with.
    ui:               whether there is a page for people at /.
    price_per_hour:   what the machine costs, in any currency, so that the price of tokens can be told; None: not known.
    otlp_traces_endpoint: a collector's URL, which gets a span of every request (OTLP over HTTP); None: nobody does.
    log_json:         lines for machines, one of every request among them, instead of sentences.
    tool_parser, reasoning_parser: the forms of calls and thoughts (docs/tools.md); 'auto': found from the template.
    """

    names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    shutdown_s: float = 30.0
    stall_s: float = 60.0
    keep_alive_s: float = 15.0
    status_s: float = 10.0
    connections: int = 4096
    limits: RequestLimits = field(default_factory=RequestLimits)
    queue_prompt_tokens: int = 1 << 20
    queue_body_bytes: int = 64 << 20
    metrics_prefix: str = "linnet"
    log_json: bool = False
    default_max_tokens: int | None = None
    engine_runs_in: str = "process"
    engine_restarts: int = 3
    engine_timeout_s: float = 300.0
    sessions: SessionLimits = field(default_factory=SessionLimits)
    session_dir: Path | None = None
    adapters: tuple[tuple[str, Path], ...] = ()
    adapters_from: Path | None = None
    prompt_modules: tuple[tuple[str, str], ...] = ()
    ui: bool = True
    price_per_hour: float | None = None
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.engine_runs_in not in ENGINES:
            raise unknown_choice("engine", self.engine_runs_in, ENGINES)
        if not 0 <= self.engine_restarts <= 1000:
            raise ConfigError(
                f"engine_restarts is {self.engine_restarts}; accepted is 0 to 1000", settings=["engine_restarts"]
            )
        if not self.names or any(not 1 <= len(name) <= 256 or not name.isprintable() for name in self.names):
            wrong = next((name for name in self.names if not 1 <= len(name) <= 256 or not name.isprintable()), "")
            raise ConfigError(f"names has {wrong[:80]!r}; accepted are 1 to 256 printable letters", settings=["names"])
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; accepted is 0 (any free one) to 65535", settings=["port"])
        for name in ("shutdown_s", "stall_s", "keep_alive_s", "status_s", "engine_timeout_s"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ConfigError(f"{name} is {getattr(self, name)}; accepted is 0 to 1000000 seconds", settings=[name])
        if self.price_per_hour is not None and not 0 <= self.price_per_hour <= 1e9:
            raise ConfigError(
                f"price_per_hour is {self.price_per_hour}; accepted is 0 to 1e9", settings=["price_per_hour"]
            )
        _check_collector(self.otlp_traces_endpoint)
        for name, value in (
            ("queue_prompt_tokens", self.queue_prompt_tokens),
            ("queue_body_bytes", self.queue_body_bytes),
            ("body_bytes", self.limits.body_bytes),
            ("default_max_tokens", self.default_max_tokens),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; accepted is 1 or more", settings=[name])
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key for key in self.keys):
            raise ConfigError(
                "an API key is too short or has odd characters; accepted are 8 or more printable ASCII characters"
            )


def _check_collector(url: str | None) -> None:
    """Raises ConfigError for what is no address, or has a password in it, which would stand in the process list."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        good = False
    if not good:
        name = "otlp_traces_endpoint"
        raise ConfigError(
            f"{name} is {url.rpartition('@')[2][:200]!r}; accepted is http://HOST:PORT or https://HOST:PORT, "
            "with a path or without, and a password only as OTEL_EXPORTER_OTLP_HEADERS in the environment",
            settings=[name],
        )


def with_fields(
    backend: BackendSettings, engine: EngineSettings, given: Mapping[str, Any]
) -> tuple[BackendSettings, EngineSettings]:
    """The records with the fields that ``given`` names; TypeError for a name that neither has."""
    parts: list[dict[str, Any]] = [{}, {}]
    for name, value in given.items():
        place = next((index for index, one in enumerate((backend, engine)) if name in names_of(one)), None)
        if place is None or name == "name":
            known = ", ".join(sorted({*names_of(backend), *names_of(engine)} - {"name"}))
            raise TypeError(f"there is no setting {name}; there are {known}")
        parts[place][name] = value
    return replace(backend, **parts[0]), replace(engine, **parts[1])


def names_of(record: Any) -> tuple[str, ...]:
    """The names of a record's fields, of an instance or its class."""
    return tuple(one.name for one in fields(record))
