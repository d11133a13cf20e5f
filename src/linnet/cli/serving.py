# SPDX-License-Identifier: Apache-2.0
"""``linnet serve``: an OpenAI-compatible server over one model."""

import logging
import os
import sys
from pathlib import Path

import typer

from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.cli.descriptors import room_for_connections
from linnet.cli.numbers import human_bytes
from linnet.cli.serve_options import SERVING
from linnet.settings import RequestLimits, ServeConfig


@offers(given=SERVING)
def serve(model: options.Model, *, given: Given) -> None:
    """Serve a model through the OpenAI API: completions and chat, streaming or not, for many clients at once.

    Stops gently on SIGTERM or Ctrl-C: unfinished answers are completed. A second signal aborts them.

    [dim]Examples[/]

      linnet serve ./my-model
      linnet serve ./my-model-w4 --port 9000 --served-model-name small --max-model-len 8k
      LINNET_API_KEY=$(cat key) linnet serve org/model --host 0.0.0.0 --allowed-host llm.example.org
      curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"model": "my-model", "prompt": "Hi"}'
    """
    from linnet.formats import resolve_model
    from linnet.serve import address_of, bind, release, run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    directory = resolve_model(model, given["revision"])
    config = given.make(
        ServeConfig,
        names=given["names"] or (Path(os.path.abspath(model)).name if Path(model).exists() else model,),
        limits=given.make(RequestLimits),
        connections=room_for_connections(ServeConfig.connections),
    )
    if config.connections < ServeConfig.connections:
        logging.getLogger(__name__).warning(
            "at most %d connections instead of %d: this process may open no more files (ulimit -Hn)",
            config.connections,
            ServeConfig.connections,
        )
    open_model = options.opener(given, large_pages=True)
    listener = bind(config)
    try:
        llm = open_model(directory, given["policy"], given["kv_cache"])
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
