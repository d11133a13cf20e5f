# SPDX-License-Identifier: Apache-2.0
"""What a server asks of an engine, whether it is a thread of its process or a process of its own."""

from collections.abc import Callable
from typing import Protocol

from linnet.engine.messages import EngineEvent, EngineMessage
from linnet.scheduler import SchedulerCounters

Deliver = Callable[[tuple[EngineEvent, ...]], None]
"""Takes all events of a step at once; called from a thread of the door's own, and must not block."""


class EngineDoor(Protocol):
    """Every Submit that ``send`` accepted is answered by exactly one Finished, whatever happens to the engine.

    counters:    as of the last step. ``last_step_s``: when it ended, on the clock ``time.monotonic``.
    error:       what ended the engine for good, if it failed.
    recovering:  it has ended and is being started again: not healthy now, but about to be, or to fail.
    restarts:    how often it was started again.
    process_id:  of the engine's own process; None: it has none, or none now.
    """

    counters: SchedulerCounters
    last_step_s: float
    error: BaseException | None
    restarts: int

    @property
    def healthy(self) -> bool: ...
    @property
    def recovering(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    @property
    def process_id(self) -> int | None: ...
    def start(self) -> object: ...
    def send(self, message: EngineMessage) -> None: ...
    def stop(self, timeout_s: float = 60.0) -> None: ...
