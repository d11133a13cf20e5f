# SPDX-License-Identifier: Apache-2.0
"""``linnet serve``: an OpenAI-compatible server over one model."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli import options
from linnet.cli.descriptors import room_for_connections
from linnet.cli.numbers import human_bytes, parse_bytes, parse_count
from linnet.errors import ConfigError, unknown_choice

KEY_VARIABLE = "LINNET_API_KEY"

ADDRESS, LIMITS, REPORTS = "Address and access", "Limits", "Behaviour and reports"


def serve(
    model: options.Model,
    host: Annotated[
        str,
        options.option(
            rich_help_panel=ADDRESS,
            help="Address to listen on; beyond this machine only with an API key.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        options.option(rich_help_panel=ADDRESS, min=0, max=65535, metavar="N", help="Port; 0 takes any free one."),
    ] = 8000,
    uds: Annotated[
        Path | None,
        options.option(
            rich_help_panel=ADDRESS,
            help="Listen on this UNIX socket instead of host and port.",
            show_default=False,
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        options.option(
            rich_help_panel=ADDRESS,
            help="Name clients use; may be given again for more names.",
            show_default="the name of the directory or file",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        options.option(
            rich_help_panel=ADDRESS,
            help=f"File with one accepted API key a line; {KEY_VARIABLE} adds one more.",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        options.option(
            rich_help_panel=ADDRESS,
            help="Host name clients may use to reach the server; may be given again.",
            show_default=False,
        ),
    ] = None,
    max_model_len: options.MaxModelLen = None,
    kv_cache: options.KVCache = "auto",
    max_num_seqs: options.MaxSequences = 64,
    max_num_batched_tokens: options.TokenBudget = 512,
    step_budget: Annotated[
        float,
        options.option(
            rich_help_panel=LIMITS,
            min=0,
            metavar="SECONDS",
            help="Longest pause between tokens that a long prompt may cause; 0: no bound.",
        ),
    ] = 0.1,
    kv_cache_memory: options.KVBytes = None,
    tile_cache: options.TileCache = True,
    quantize: options.Quantize = None,
    enable_prefix_caching: Annotated[
        bool,
        options.option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            rich_help_panel=REPORTS,
            help="Reuse known prompt prefixes.",
        ),
    ] = True,
    scheduling_policy: Annotated[
        str,
        options.option(rich_help_panel=REPORTS, help="Order of waiting requests: fcfs or priority."),
    ] = "fcfs",
    max_waiting: Annotated[
        int,
        options.option(rich_help_panel=LIMITS, min=0, metavar="N", help="Sequences that may wait; beyond them 429."),
    ] = 1024,
    max_waiting_tokens: Annotated[
        int,
        options.option(
            rich_help_panel=LIMITS,
            parser=parse_count,
            metavar="TOKENS",
            show_default="1M",
            help="Prompt tokens of all unfinished requests; beyond them 429.",
        ),
    ] = 1 << 20,
    max_waiting_bytes: Annotated[
        int,
        options.option(
            rich_help_panel=LIMITS,
            parser=parse_bytes,
            metavar="SIZE",
            show_default="64MiB",
            help="Body bytes of all unfinished requests; beyond them 429.",
        ),
    ] = 64 << 20,
    max_body_size: Annotated[
        int,
        options.option(
            rich_help_panel=LIMITS,
            parser=parse_bytes,
            metavar="SIZE",
            show_default="8MiB",
            help="Largest request body; beyond it 413.",
        ),
    ] = 8 << 20,
    request_timeout: Annotated[
        float | None,
        options.option(
            rich_help_panel=LIMITS,
            min=0.001,
            metavar="SECONDS",
            help="Longest a request may take, waiting included.",
            show_default="none",
        ),
    ] = None,
    shutdown_timeout: Annotated[
        float,
        options.option(
            rich_help_panel=LIMITS,
            min=0,
            metavar="SECONDS",
            help="How long unfinished requests may run on after SIGTERM.",
        ),
    ] = 30.0,
    metrics_compat: Annotated[
        str | None,
        options.option(
            rich_help_panel=REPORTS,
            help="vllm: use vLLM's metric prefix instead of linnet:",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        str,
        options.option(rich_help_panel=REPORTS, help="text or json, for the start and status lines."),
    ] = "text",
    generation_config: options.GenerationConfig = "auto",
    default_max_tokens: Annotated[
        int | None,
        options.option(
            rich_help_panel=LIMITS,
            parser=parse_count,
            metavar="TOKENS",
            show_default="the model's, else 4096",
            help="Longest answer of a chat request that names no max_tokens.",
        ),
    ] = None,
    policy: options.Policy = "fast",
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    isa: options.Isa = None,
    revision: options.Revision = None,
) -> None:
    """Serve a model through the OpenAI API: completions and chat, streaming or not, for many clients at once.

    Stops gently on SIGTERM or Ctrl-C: unfinished answers are completed. A second signal aborts them.

    [dim]Examples[/]

      linnet serve ./my-model
      linnet serve ./my-model-w4 --port 9000 --served-model-name small --max-model-len 8k
      LINNET_API_KEY=$(cat key) linnet serve org/model --host 0.0.0.0 --allowed-host llm.example.org
      curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"model": "my-model", "prompt": "Hi"}'
    """
    from linnet.api import LLM
    from linnet.formats import resolve_model
    from linnet.program.choose_numerics import known_kv_cache, known_policy
    from linnet.serve import RequestLimits, ServeConfig, address_of, bind, release, run

    if log_format not in ("text", "json"):
        raise unknown_choice("log_format", log_format, ("text", "json"))
    if metrics_compat not in (None, "vllm"):
        raise unknown_choice("metrics_compat", metrics_compat, ("vllm",))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    directory = resolve_model(model, revision)
    config = ServeConfig(
        names=tuple(dict.fromkeys(served_model_name or ()))
        or (Path(os.path.abspath(model)).name if Path(model).exists() else model,),
        host=host,
        port=port,
        uds=None if uds is None else str(uds),
        keys=_keys(api_key_file),
        allowed_hosts=tuple(allowed_host or ()),
        shutdown_s=shutdown_timeout,
        limits=RequestLimits(body_bytes=max_body_size, deadline_s=request_timeout),
        queue_prompt_tokens=max_waiting_tokens,
        queue_body_bytes=max_waiting_bytes,
        connections=room_for_connections(ServeConfig.connections),
        metrics_prefix=metrics_compat or "linnet",
        log_json=log_format == "json",
        default_max_tokens=default_max_tokens,
    )
    if config.connections < ServeConfig.connections:
        logging.getLogger(__name__).warning(
            "at most %d connections instead of %d: this process may open no more files (ulimit -Hn)",
            config.connections,
            ServeConfig.connections,
        )
    listener = bind(config)
    try:
        llm = LLM(
            directory,
            policy=known_policy(policy),
            kv_cache=known_kv_cache(kv_cache),
            backend=backend,
            threads=threads,
            isa=isa,
            max_model_len=max_model_len,
            kv_bytes=kv_cache_memory,
            tile_cache=tile_cache,
            quantize=quantize,
            large_pages=True,
            generation_config=generation_config,
            token_budget=max_num_batched_tokens,
            step_budget_s=step_budget or None,
            max_sequences=max_num_seqs,
            prefix_cache=enable_prefix_caching,
            scheduling=scheduling_policy,
            max_waiting_requests=max_waiting,
        )
    except BaseException:
        release(listener, config)
        raise
    with llm:
        status = run(llm, listener, config, _say, lambda _: _say(_start_line(llm, config, address_of(listener))))
        if llm.stepping:  # a step that does not end: closing would unmap the model under it
            os._exit(status)
    if status:
        raise typer.Exit(status)


def _start_line(llm, config, address: str) -> str:  # type: ignore[no-untyped-def]
    """Model, where to connect, numerics, and what the KV cache has room for (it is touched only as it fills)."""
    import json

    tokens = llm.facts.kv_tokens
    recommended = str(llm.sampling_defaults)
    if config.log_json:
        return json.dumps(
            {
                "event": "ready",
                "model": config.names[0],
                "numerics": llm.numerics_id,
                "kv_tokens": tokens,
                "max_model_len": llm.max_model_len,
                "sampling_defaults": recommended,
                "url": address,
            }
        )
    sequences = llm.facts.scheduling.max_sequences
    return (
        f"{config.names[0]} on {address}  ({llm.numerics_id}; context {llm.max_model_len:,}; KV cache at most "
        f"{human_bytes(llm.kv_bytes)}, {tokens:,} tokens: {tokens // llm.max_model_len:,} whole contexts, or "
        f"{sequences:,} sequences of {tokens // sequences:,}"
        + (f"; unless asked otherwise {recommended}, as its generation_config.json says)" if recommended else ")")
    )


def _keys(path: Path | None) -> tuple[str, ...]:
    """Keys of the file and of the environment, never of the command line."""
    keys: list[str] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError as error:
            raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--api-key-file {path} is not ASCII text, one key a line") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"--api-key-file {path} holds no key; accepted is one key a line")
    variable = os.environ.get(KEY_VARIABLE, "").strip()
    return tuple(dict.fromkeys([*keys, variable] if variable else keys))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
