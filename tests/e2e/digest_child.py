# SPDX-License-Identifier: Apache-2.0
"""What a child process runs to be an engine over a digest model; what it is told says how slow, and how it breaks."""

import os
import socket
import sys
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from digest_executable import DigestExecutable

from linnet.child_process import start_child
from linnet.engine import (
    Channel,
    CompiledGrammars,
    Engine,
    EngineChild,
    EngineServer,
    ReadyFrame,
    Vocabulary,
    refused_frame,
)
from linnet.errors import UnsupportedError
from linnet.process_memory import Footprint
from linnet.scheduler import SchedulerConfig

VOCABULARY = 61
CONFIG = SchedulerConfig(num_blocks=64, max_model_len=64, block_size=4, token_budget=32, max_sequences=8)


class ToldDigest(DigestExecutable):
    """``delay_s`` a step; a step with ``break_token`` in it raises, one with ``hang_token`` does not end."""

    def __init__(self, told: dict[str, Any], config: SchedulerConfig) -> None:
        super().__init__(VOCABULARY, config.block_size)
        self._told = told

    def execute(self, batch: Any, states: Any) -> None:
        time.sleep(self._told["delay_s"])
        if self._told["break_token"] in batch.token_ids:
            raise RuntimeError("the kernel broke")
        if self._told["hang_token"] in batch.token_ids:
            time.sleep(600)
        super().execute(batch, states)


def begin(**told: Any) -> EngineChild:
    """Start one from a test, whose folder must be on the child's path (PYTHONPATH)."""
    child = EngineChild(start_child("digest_child"))
    defaults = {"config": asdict(CONFIG), "delay_s": 0.0, "break_token": -1, "hang_token": -1, "salt": 0, "first": ""}
    child.tell(defaults | told)
    return child


def main(connection: socket.socket) -> None:
    """See the module. ``first``: bytes (hexadecimal) sent instead of being ready, or ``refuse``."""
    channel = Channel(connection)
    told = channel.receive(msgspec.msgpack.Decoder(dict[str, Any]))
    assert told is not None
    if told["first"] == "refuse":
        channel.send(channel.encode(refused_frame(UnsupportedError("no", ["one", "two"], settings=["kv_cache"]))))
        os._exit(0)
    if told["first"]:
        connection.sendall(bytes.fromhex(told["first"]))
        time.sleep(600)
    config = SchedulerConfig(**told["config"])
    vocabulary: Future[Vocabulary] = Future()
    grammars = CompiledGrammars(vocabulary.result)
    engine = Engine(ToldDigest(told, config), config, check=True, grammars=grammars)
    footprint = Footprint(weight_bytes=0, step_bytes=0, kv_bytes=0, engine_bytes=os.getpid())  # of each its own
    channel.send(channel.encode(ReadyFrame(engine.facts, f"digest {told['salt']}", footprint, engine.counters())))
    status = EngineServer(engine, channel, vocabulary).run()
    sys.stderr.flush()
    os._exit(status)


FOLDER = str(Path(__file__).parent)
