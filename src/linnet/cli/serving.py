# SPDX-License-Identifier: Apache-2.0
"""``linnet serve``: an OpenAI-compatible server over one model."""

import gc
import logging
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from linnet.child_process import ChildProcess, child_environment, start_child
from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.cli.descriptors import room_for_connections
from linnet.cli.numbers import human_bytes
from linnet.cli.serve_options import SERVING
from linnet.errors import ConfigError
from linnet.logs import begin_log, end_log, json_line, say
from linnet.settings import ENGINE_MODULE, RequestLimits, ServeConfig, SessionLimits

if TYPE_CHECKING:
    from linnet.api import Opening
    from linnet.engine import EngineChild

MORE_ADAPTERS = 4
"""Room for so many beside those that a server starts with, where others may be loaded and nobody says how many."""

SWITCH_S = 0.001
"""How long a thread computes before it makes way for another that waits; Python's own is five times as long."""


@offers(given=SERVING)
def serve(model: options.Model, *, given: Given) -> None:
    """Serve a model through the OpenAI API: completions and chat, streaming or not, for many clients at once.

    Stops gently on SIGTERM or Ctrl-C: unfinished answers are completed. A second signal aborts them.

    [dim]Examples[/]

      linnet serve ./my-model
      linnet serve ./my-model --adapter poet=./poet-lora --adapter lawyer=./lawyer-lora
      linnet serve ./my-model-w4 --port 9000 --served-model-name small --max-model-len 8k
      LINNET_API_KEY=$(cat key) linnet serve org/model --host 0.0.0.0 --allowed-host llm.example.org
      curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"model": "my-model", "prompt": "Hi"}'
    """
    config = given.make(
        ServeConfig,
        names=given["names"] or served_names(model),
        limits=given.make(RequestLimits),
        sessions=given.make(SessionLimits),
        connections=room_for_connections(ServeConfig.connections),
    )
    if given["kv_swap_keep"] and config.session_dir is None:
        raise ConfigError(
            "kv_swap_keep is on without session_dir; accepted is a folder as well: the secret that tenants are told "
            "apart by lies there, and without it nobody's prefixes are found again",
            settings=["kv_swap_keep", "session_dir"],
        )
    with ExitStack() as stack:
        process = None
        if config.engine_runs_in == "process":  # it imports what it needs while we do
            process = start_child(ENGINE_MODULE, child_environment(os.environ))
            stack.callback(process.kill)
        status = _serve(model, given, config, process, stack)
    if status:
        raise typer.Exit(status)


def _serve(model: str, given: Given, config: ServeConfig, process: ChildProcess | None, stack: ExitStack) -> int:
    """Open, serve to the end; returns the exit status. ``process`` becomes the engine, if there is one."""
    from linnet.api import begin_opening
    from linnet.formats import resolve_model

    begin_log(config.log_json)
    if config.connections < ServeConfig.connections:
        logging.getLogger(__name__).warning(
            "at most %d connections instead of %d: this process may open no more files (ulimit -Hn)",
            config.connections,
            ServeConfig.connections,
        )
    directory = resolve_model(model, given["revision"])
    opening = options.opening(given, directory, given["policy"], given["kv_cache"], large_pages=True)
    more = 0 if config.adapters_from is None else MORE_ADAPTERS
    opening = opening.with_room([path for _, path in config.adapters], more)
    child = None if process is None else begin_opening(opening, process, log_json=config.log_json)
    # A good part of a second, in which the engine opens.
    from linnet.serve import address_of, bind, check_traces, release, run

    check_traces(config)
    listener = bind(config)
    try:
        served = open_served(opening, given, config, child, stack)
    except BaseException:
        release(listener, config)
        raise
    address = address_of(listener)
    _share_the_interpreter()
    if config.log_json or not sys.stderr.isatty():
        return run(served, listener, config, say, lambda _: say(_start_line(served, config, address)))
    from linnet.cli.serving_screen import Screen

    with Screen() as screen:
        return run(served, listener, config, screen.say, partial(screen.begin, served, config, address), screen.status)


def _share_the_interpreter() -> None:
    """Who answers waits for those who prepare long requests: so that it is a short time, they are asked more often to
    make way, and the collector no longer looks at what has come to stay."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def served_names(model: str) -> tuple[str, ...]:
    """What a model is called unless its operator says it."""
    return (Path(os.path.abspath(model)).name if Path(model).exists() else model,)


def open_served(  # type: ignore[no-untyped-def]
    opening: "Opening", given: Given, config: ServeConfig, child: "EngineChild | None", stack: ExitStack
):
    """The model, its engine in ``child`` or in a thread that ends with ``stack``."""
    generation_config = given["generation_config"]
    if child is not None:
        from linnet.api import open_in_process

        return open_in_process(
            opening,
            child,
            generation_config=generation_config,
            most_restarts=config.engine_restarts,
            most_step_s=config.engine_timeout_s or None,
            moderate=given.get("moderation"),
            log_json=config.log_json,
        )
    from linnet.api import LLM

    llm = LLM(generation_config=generation_config, moderate=given.get("moderation"), **vars(opening))
    stack.callback(_close, llm)
    return llm.served()


def _close(llm) -> None:  # type: ignore[no-untyped-def]
    """Release a model, unless a step that does not end uses it: closing would unmap it under that."""
    if llm.stepping:
        end_log()
        os._exit(1)
    llm.close()


def _start_line(served, config, address: str) -> str:  # type: ignore[no-untyped-def]
    """Model, where to connect, numerics, and what the KV cache has room for (it is touched only as it fills)."""
    tokens, memory = served.facts.kv_tokens, served.footprint
    recommended = str(served.sampling_defaults)
    if config.log_json:
        return json_line(
            "ready",
            {
                "model": config.names[0],
                "numerics": served.numerics_id,
                "kv_tokens": tokens,
                "max_model_len": served.max_model_len,
                "predicted_memory": memory.parts(),
                "sampling_defaults": recommended,
                "url": address,
            },
        )
    sequences = served.facts.scheduling.max_sequences
    return (
        f"{config.names[0]} on {address}  ({served.numerics_id}; context {served.max_model_len:,}; KV cache at most "
        f"{human_bytes(memory.kv_bytes)}, {tokens:,} tokens: {tokens // served.max_model_len:,} whole contexts, or "
        f"{sequences:,} sequences of {tokens // sequences:,}; all in all at most {human_bytes(memory.total_bytes)}"
        + (f"; unless asked otherwise {recommended}, as its generation_config.json says)" if recommended else ")")
    )
