# SPDX-License-Identifier: Apache-2.0
"""The settings of ``linnet serve``, in the order of its help."""

import os
from pathlib import Path
from typing import Any

from linnet.cli import options
from linnet.cli.declaring import OF_THE_RECORD, Setting
from linnet.cli.moderating import moderation_hook
from linnet.cli.numbers import parse_bytes, parse_count
from linnet.errors import ConfigError, unknown_choice
from linnet.settings import EngineSettings, RequestLimits, ServeConfig, SessionLimits

KEY_VARIABLE = "LINNET_API_KEY"

ADDRESS, LIMITS, REPORTS = "Address and access", "Limits", "Behaviour and reports"


def read_keys(path: Path) -> list[str]:
    """Of a file, one a line. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file {path} is not ASCII text, one key a line") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key; accepted is one key a line")
    return keys


def _keys(path: Path | None) -> tuple[str, ...]:
    """Keys of the file and of the environment, never of the command line."""
    keys = [] if path is None else read_keys(path)
    variable = os.environ.get(KEY_VARIABLE, "").strip()
    return tuple(dict.fromkeys([*keys, variable] if variable else keys))


def _metrics_prefix(program: str | None) -> str:
    if program not in (None, "vllm"):
        raise unknown_choice("metrics_compat", program, ("vllm",))
    return program or "linnet"


def _is_json(log_format: str) -> bool:
    if log_format not in ("text", "json"):
        raise unknown_choice("log_format", log_format, ("text", "json"))
    return log_format == "json"


def _modules(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Names and texts of NAME=FILE."""
    modules: dict[str, str] = {}
    for one in given or ():
        name, equals, file = one.partition("=")
        if not equals or not name or not file:
            raise ConfigError(f"--prompt-module is {one[:80]!r}; accepted is NAME=FILE")
        if name in modules:
            raise ConfigError(f"--prompt-module names {name[:80]!r} twice; give each module its own name")
        try:
            modules[name] = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--prompt-module {file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--prompt-module {file} is not UTF-8 text") from None
    return tuple(modules.items())


def named_adapters(given: list[str] | None) -> tuple[tuple[str, Path], ...]:
    """Names and directories of NAME=DIR."""
    adapters: dict[str, Path] = {}
    for one in given or ():
        name, equals, directory = one.partition("=")
        if not equals or not name or not directory:
            raise ConfigError(f"--adapter is {one[:80]!r}; accepted is NAME=DIR")
        if name in adapters:
            raise ConfigError(f"--adapter names {name[:80]!r} twice; give each adapter its own name")
        adapters[name] = Path(directory)
    return tuple(adapters.items())


def _spelt(*names: str, **words: Any) -> Any:
    """An option of several spellings."""
    return options.option(*names, **words)


def _of(
    record: type,
    name: str,
    panel: str | None,
    help_text: str,
    *,
    field: str = "",
    kind: Any = OF_THE_RECORD,
    default: Any = OF_THE_RECORD,
    convert: Any = None,
    **words: Any,
) -> Setting:
    """A field of a record in one of the help's panels; ``words`` are typer's."""
    option = options.option(rich_help_panel=panel, help=help_text, **words)
    return Setting(name=name, record=record, field=field, kind=kind, default=default, convert=convert, option=option)


SERVED_MODEL_NAME = Setting(
    name="served_model_name",
    field="names",
    kind=list[str] | None,
    default=None,
    convert=lambda names: tuple(dict.fromkeys(names or ())),
    option=options.option(
        rich_help_panel=ADDRESS,
        help="Name clients use; may be given again for more names.",
        show_default="the name of the directory or file",
    ),
)

WHERE = (
    _of(ServeConfig, "host", ADDRESS, "Address to listen on; beyond this machine only with an API key."),
    _of(ServeConfig, "port", ADDRESS, "Port; 0 takes any free one.", min=0, max=65535, metavar="N"),
    _of(
        ServeConfig,
        "uds",
        ADDRESS,
        "Listen on this UNIX socket instead of host and port.",
        kind=Path | None,
        convert=lambda path: None if path is None else str(path),
        show_default=False,
    ),
    SERVED_MODEL_NAME,
    _of(
        ServeConfig,
        "api_key_file",
        ADDRESS,
        f"File with one accepted API key a line; {KEY_VARIABLE} adds one more.",
        field="keys",
        kind=Path | None,
        default=None,
        convert=_keys,
        show_default=False,
    ),
    _of(
        ServeConfig,
        "allowed_host",
        ADDRESS,
        "Host name clients may use to reach the server; may be given again.",
        field="allowed_hosts",
        kind=list[str] | None,
        default=None,
        convert=lambda hosts: tuple(hosts or ()),
        show_default=False,
    ),
)

ENGINE = (
    options.MAX_MODEL_LEN,
    options.KV_CACHE,
    _of(EngineSettings, "max_num_seqs", None, "Sequences computed in one step.", field="max_sequences"),
    _of(
        EngineSettings,
        "max_num_batched_tokens",
        None,
        "Tokens computed in one step.",
        field="token_budget",
        parser=parse_count,
        metavar="TOKENS",
    ),
    _of(
        EngineSettings,
        "step_budget",
        LIMITS,
        "Longest pause between tokens that a long prompt may cause; 0: no bound.",
        field="step_budget_s",
        kind=float,
        default=0.1,
        convert=lambda seconds: seconds or None,
        min=0,
        metavar="SECONDS",
    ),
    options.KV_BYTES,
    options.TILE_CACHE,
    options.QUANTIZE,
    _of(
        EngineSettings,
        "enable_prefix_caching",
        REPORTS,
        "Reuse known prompt prefixes.",
        field="prefix_cache",
    ),
    _of(
        EngineSettings,
        "swap_space",
        LIMITS,
        "A second store for what the KV cache has no room for: prefixes, and requests that had to make way.",
        field="kv_swap_bytes",
        parser=parse_bytes,
        metavar="SIZE",
        show_default="none",
    ),
    _of(
        EngineSettings,
        "swap_dir",
        LIMITS,
        "Folder for a file that it lies in; the file goes with the engine.",
        field="kv_swap_dir",
        metavar="DIR",
        show_default="in memory",
    ),
    _of(
        EngineSettings,
        "swap_keep",
        LIMITS,
        "Keep that file, so that what is cached is there after a restart; needs --session-dir.",
        field="kv_swap_keep",
    ),
    _of(
        EngineSettings,
        "scheduling_policy",
        REPORTS,
        "Order of requests: fcfs, priority, mlfq, shortest or fair.",
        field="scheduling",
    ),
    _of(
        EngineSettings,
        "ageing",
        REPORTS,
        "Waiting that long makes up for one level of priority; under mlfq it brings to the front.",
        field="ageing_s",
        min=0.001,
        metavar="SECONDS",
        show_default="never; under mlfq 30",
    ),
    _of(
        EngineSettings,
        "predict_length",
        REPORTS,
        "How long shortest takes an answer to be: past (as the tenant's last ones were) or limit (max_tokens).",
    ),
    _of(
        EngineSettings,
        "reserve",
        REPORTS,
        "KV memory to be left for those who run when another begins: none, past (what answers were) or limit.",
    ),
    _of(
        EngineSettings,
        "max_waiting",
        LIMITS,
        "Sequences that may wait; beyond them 429.",
        field="max_waiting_requests",
        min=0,
        metavar="N",
    ),
)

ADAPTERS = (
    Setting(
        name="adapter",
        record=ServeConfig,
        field="adapters",
        kind=list[str] | None,
        default=None,
        convert=named_adapters,
        option=_spelt(
            "--adapter",
            "--lora-modules",
            rich_help_panel=REPORTS,
            metavar="NAME=DIR",
            help="A LoRA adapter (PEFT directory) that requests for this model name go through; may be given again.",
            show_default=False,
        ),
    ),
    _of(
        ServeConfig,
        "adapters_from",
        REPORTS,
        "Folder whose adapters may be loaded while the server runs, with an API key.",
        metavar="DIR",
        show_default=False,
    ),
    Setting(
        name="max_adapters",
        record=EngineSettings,
        option=_spelt(
            "--max-adapters",
            "--max-loras",
            rich_help_panel=LIMITS,
            min=0,
            metavar="N",
            help="Adapters at a time; memory for all of them is counted.",
            show_default="those given, and 4 more with --adapters-from",
        ),
    ),
    Setting(
        name="max_adapter_rank",
        record=EngineSettings,
        option=_spelt(
            "--max-adapter-rank",
            "--max-lora-rank",
            rich_help_panel=LIMITS,
            min=1,
            metavar="N",
            help="Rank of an adapter.",
            show_default="the greatest of those given, at least 16",
        ),
    ),
)

BOUNDS = (
    _of(
        ServeConfig,
        "max_waiting_tokens",
        LIMITS,
        "Prompt tokens of all unfinished requests; beyond them 429.",
        field="queue_prompt_tokens",
        parser=parse_count,
        metavar="TOKENS",
        show_default="1M",
    ),
    _of(
        ServeConfig,
        "max_waiting_bytes",
        LIMITS,
        "Body bytes of all unfinished requests; beyond them 429.",
        field="queue_body_bytes",
        parser=parse_bytes,
        metavar="SIZE",
        show_default="64MiB",
    ),
    _of(
        RequestLimits,
        "max_body_size",
        LIMITS,
        "Largest request body; beyond it 413.",
        field="body_bytes",
        parser=parse_bytes,
        metavar="SIZE",
        show_default="8MiB",
    ),
    _of(
        RequestLimits,
        "request_timeout",
        LIMITS,
        "Longest a request may take, waiting included.",
        field="deadline_s",
        min=0.001,
        metavar="SECONDS",
        show_default="none",
    ),
    _of(
        ServeConfig,
        "shutdown_timeout",
        LIMITS,
        "How long unfinished requests may run on after SIGTERM.",
        field="shutdown_s",
        min=0,
        metavar="SECONDS",
    ),
)

BEHAVIOUR = (
    _of(
        ServeConfig,
        "engine",
        REPORTS,
        "Where the engine runs: process, one of its own that is started again when it dies, or thread.",
        field="engine_runs_in",
    ),
    _of(
        ServeConfig,
        "engine_restarts",
        LIMITS,
        "Restarts of a dead engine process within 10 minutes; one more ends the server.",
        min=0,
        max=1000,
        metavar="N",
    ),
    _of(
        ServeConfig,
        "engine_timeout",
        LIMITS,
        "Longest step of an engine process; one that takes longer hangs and is started again; 0: no bound.",
        field="engine_timeout_s",
        min=0,
        metavar="SECONDS",
    ),
    _of(ServeConfig, "ui", REPORTS, "A page at / to chat and to watch the engine."),
    _of(
        ServeConfig,
        "tool_parser",
        REPORTS,
        "Form in which the model writes calls of tools, by vLLM's names; auto: found from the chat template.",
        metavar="NAME",
    ),
    _of(
        ServeConfig,
        "reasoning_parser",
        REPORTS,
        "Form in which it writes its thoughts, by vLLM's names; none: they are part of the answer.",
        metavar="NAME",
    ),
    _of(
        ServeConfig,
        "metrics_compat",
        REPORTS,
        "vllm: use vLLM's metric prefix instead of linnet:",
        field="metrics_prefix",
        kind=str | None,
        default=None,
        convert=_metrics_prefix,
        show_default=False,
    ),
    _of(
        ServeConfig,
        "log_format",
        REPORTS,
        "text, or json: a line of JSON for everything that is said, and for every request.",
        field="log_json",
        kind=str,
        default="text",
        convert=_is_json,
    ),
    _of(
        ServeConfig,
        "otlp_traces_endpoint",
        REPORTS,
        "Collector that gets an OpenTelemetry span of every request, as OTLP over HTTP; needs the extra otel.",
        metavar="URL",
        show_default=False,
    ),
    _of(
        ServeConfig,
        "price_per_hour",
        REPORTS,
        "What the machine costs, in any currency: the metrics and the last line say what a million tokens cost.",
        min=0,
        metavar="PRICE",
        show_default=False,
    ),
    Setting(
        name="moderation",
        kind=str | None,
        default=None,
        convert=moderation_hook,
        option=options.option(
            rich_help_panel=REPORTS,
            metavar="MODULE:FUNCTION",
            help="Sees every text before it goes out and may end it: (text so far, new text) -> continue, stop or end.",
            show_default=False,
        ),
    ),
    _of(
        ServeConfig,
        "prompt_module",
        REPORTS,
        "A text that requests may begin with (prompt_modules), computed once; may be given again.",
        field="prompt_modules",
        kind=list[str] | None,
        default=None,
        convert=_modules,
        metavar="NAME=FILE",
        show_default=False,
    ),
    _of(
        ServeConfig,
        "session_dir",
        REPORTS,
        "Folder where sessions outlive the server; without it they end with it.",
        metavar="DIR",
        show_default=False,
    ),
    _of(
        SessionLimits,
        "max_sessions",
        LIMITS,
        "Conversations kept between turns, of each key; 0: none.",
        min=0,
        metavar="N",
    ),
    _of(
        SessionLimits,
        "session_ttl",
        LIMITS,
        "How long a session is kept after its last turn.",
        field="session_ttl_s",
        min=0.001,
        metavar="SECONDS",
        show_default="3600",
    ),
    _of(
        EngineSettings,
        "kept_share",
        LIMITS,
        "Of the KV cache, the most that sessions and prompt modules keep between requests.",
        min=0,
        max=1,
        metavar="SHARE",
    ),
    options.GENERATION_CONFIG,
    _of(
        ServeConfig,
        "default_max_tokens",
        LIMITS,
        "Longest answer of a chat request that names no max_tokens.",
        parser=parse_count,
        metavar="TOKENS",
        show_default="the model's, else 4096",
    ),
)

SERVING = (
    *WHERE,
    *ENGINE,
    *ADAPTERS,
    *BOUNDS,
    *BEHAVIOUR,
    options.POLICY,
    options.BACKEND,
    options.THREADS,
    options.ISA,
    options.REVISION,
)

BATCH = tuple(
    setting
    for setting in SERVING
    if setting.name
    in {
        "served_model_name",
        "max_model_len",
        "kv_cache",
        "kv_cache_memory",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_prefix_caching",
        "tile_cache",
        "quantize",
        "generation_config",
        "default_max_tokens",
        "max_body_size",
        "policy",
        "backend",
        "threads",
        "isa",
        "revision",
    }
)
"""Of ``linnet batch``: what is a question of the model and the engine; nobody connects and nobody waits."""
