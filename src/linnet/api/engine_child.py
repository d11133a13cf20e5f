# SPDX-License-Identifier: Apache-2.0
"""What a child process runs to become an engine: open what it is told to, say what came of it, serve until told to end.

Started by ``linnet.child_process.start_child`` only. No tokenizer is read here, and no text is known.
"""

import logging
import os
import socket
from concurrent.futures import Future
from typing import Any

import msgspec

from linnet.api.loading import load
from linnet.api.opening import Opening
from linnet.api.warming import Warming
from linnet.engine import (
    Channel,
    CompiledGrammars,
    Engine,
    EngineServer,
    FrameError,
    ReadyFrame,
    Vocabulary,
    refused_frame,
)
from linnet.errors import LinnetError, defect, machine_sentence
from linnet.logs import begin_log, end_log, write_json


def main(connection: socket.socket) -> None:
    """Serve one engine over ``connection``; never returns."""
    begin_log()
    try:
        status = _serve(Channel(connection))
    except BaseException as error:
        logging.getLogger(__name__).error("the engine failed: %s", defect(error))
        status = 1
    end_log()
    os._exit(status)  # the kernel unmaps a model faster than the interpreter takes itself apart


def _serve(channel: Channel) -> int:
    try:
        told = channel.receive(msgspec.msgpack.Decoder(dict[str, Any]))
        if told is None:
            return 0
        if told["log_json"]:
            write_json()
        opening = Opening.of_plain(told)
    except (FrameError, TypeError, KeyError) as error:
        logging.getLogger(__name__).error("the engine was told to open nothing: %s", type(error).__name__)
        return 1
    vocabulary: Future[Vocabulary] = Future()
    try:
        engine, ready = _open(opening, CompiledGrammars(vocabulary.result))
    except LinnetError as error:
        channel.send(channel.encode(refused_frame(error)))
        return 0
    channel.send(channel.encode(ready))
    return EngineServer(engine, channel, vocabulary).run()


def _open(opening: Opening, grammars: CompiledGrammars) -> tuple[Engine, ReadyFrame]:
    """Raises what ``LLM`` raises for a model; MemoryError and OSError as LinnetErrors."""
    try:
        loaded = load(
            opening.path,
            policy=opening.policy,
            kv_cache=opening.kv_cache,
            quantize=opening.quantize,
            keep=(),
            backend=opening.backend,
            engine=opening.engine,
        )
        Warming(loaded.executable.mapped, 0)
        engine = loaded.open_engine(opening.engine.check, grammars)
    except (MemoryError, OSError) as error:
        raise LinnetError(machine_sentence(error)) from None
    return engine, ReadyFrame(engine.facts, loaded.executable.numerics.id, loaded.footprint, engine.counters())
