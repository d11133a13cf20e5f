# SPDX-License-Identifier: Apache-2.0
"""What a server needs of a model: a record, whether its engine runs here or in a process of its own.

``LLM.served`` gives it of a model that is open here. ``open_in_process`` gives it of one that another process opens
meanwhile: here there are the tokenizer and the request builder, and no weight is ever mapped.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from linnet.api.describe import warn_of_tokenizer
from linnet.api.moderation import Moderate
from linnet.api.opened import OpenedModel
from linnet.api.opening import Opening
from linnet.api.requests import RequestBuilder
from linnet.api.sampling_defaults import SamplingDefaults, read_sampling_defaults
from linnet.child_process import ChildProcess, start_child
from linnet.engine import Deliver, EngineChild, EngineDoor, EngineProcess, ReadyFrame
from linnet.errors import LinnetError
from linnet.process_memory import Footprint, peak_bytes, resident_bytes
from linnet.settings import ENGINE_MODULE
from linnet.text import Tokenizer

SERVING_BYTES = 9_000_000
"""What requests add to a server that has read its tokenizer, which is measured: it has happened."""


@dataclass(frozen=True, kw_only=True)
class ServedModel(OpenedModel):
    """See the module.

    footprint: what it will take of memory at the most. connect: makes the door of its engine, not started, around a
    deliver function; once. environment: of processes that the server starts; None: its own.
    """

    requests: RequestBuilder
    sampling_defaults: SamplingDefaults
    numerics_id: str
    footprint: Footprint
    connect: Callable[[Deliver], EngineDoor]
    environment: Mapping[str, str] | None = None


def begin_opening(opening: Opening, process: ChildProcess, *, log_json: bool = False) -> EngineChild:
    """Tell ``process`` (a child that runs ENGINE_MODULE) what to open, and how to write its log. Returns at once."""
    child = EngineChild(process)
    child.tell({**opening.plain(), "log_json": log_json})
    return child


def open_in_process(
    opening: Opening,
    child: EngineChild,
    *,
    generation_config: str | Path = "auto",
    most_restarts: int = 3,
    most_step_s: float | None = None,
    moderate: Moderate | None = None,
    log_json: bool = False,
    clock: Callable[[], datetime] = datetime.now,
) -> ServedModel:
    """A model that ``child`` has begun to open; its tokenizer is read here meanwhile.

    ``most_restarts``: how often within ten minutes an engine that ends unasked is started again, with the same context
    and KV cache. ``most_step_s``: one that computes a step for longer, or says nothing, hangs and is killed; None: none
    does. ``log_json``: how such an engine writes its log. Raises CheckpointError, UnsupportedError, ConfigError,
    CapacityError as ``LLM`` does, and EngineUnavailableError if the process dies; then it has ended.
    """
    try:
        try:
            tokenizer = Tokenizer.open(opening.path, clock=clock)
            defaults = read_sampling_defaults(opening.path, generation_config)
        except LinnetError:
            child.ready()  # what is wrong with the model itself is said first
            raise
        ready = child.ready()
    except BaseException:
        child.process.kill()
        child.end()
        raise
    server_bytes = max(peak_bytes(), resident_bytes() + SERVING_BYTES)
    warn_of_tokenizer(opening.path, tokenizer, ready.facts.vocabulary_size)
    pinned = _pinned(opening, ready)

    def again() -> EngineChild:
        process = start_child(ENGINE_MODULE, child.process.environment)
        return begin_opening(pinned, process, log_json=log_json)

    requests = RequestBuilder(tokenizer, ready.facts, lambda: secrets.randbits(64), moderate)
    return ServedModel(
        requests=requests,
        sampling_defaults=defaults,
        numerics_id=ready.numerics_id,
        footprint=replace(ready.footprint, server_bytes=server_bytes),
        connect=lambda deliver: EngineProcess(
            child,
            ready,
            again,
            deliver,
            vocabulary=lambda: requests.vocabulary,
            most_restarts=most_restarts,
            most_step_s=most_step_s,
        ),
        environment=child.process.environment,
    )


def _pinned(opening: Opening, ready: ReadyFrame) -> Opening:
    """The same with what free memory decided the first time: a request that was taken must fit the next time too."""
    asked = opening.engine.kv_bytes
    engine = replace(
        opening.engine,
        max_model_len=ready.facts.max_model_len,
        num_blocks=ready.facts.scheduling.num_blocks,
        kv_bytes=asked if isinstance(asked, int) else ready.footprint.kv_bytes,
    )
    return replace(opening, engine=engine)
