# SPDX-License-Identifier: Apache-2.0
"""The life of a server: ready, draining, ended or failed; and what /health says about it.

First SIGTERM or SIGINT: not ready, 503 for new work, unfinished requests run on until ``shutdown_s``, then exit 0. A
second signal aborts them at once. An engine that fails for good ends the process with status 1, after the answers are
out; so does a step that is in the way and does not end. While an engine that died is started again nothing is served.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from linnet.engine import Control, EngineUnavailableError
from linnet.errors import LinnetError
from linnet.serve.admission import Admission
from linnet.serve.bridge import Bridge
from linnet.serve.defects import log_defect
from linnet.settings import ServeConfig

logger = logging.getLogger(__name__)

WATCH_S = 0.25
POLL_S = 0.02
LAST_STEP_S = 5.0
"""At the deadline a step may have been running that long; the wait for a longer one is over."""
LAST_WORDS_S = 5.0


class Lifecycle:
    """Event loop only. ``stop_listening`` is called once, when the process may go."""

    def __init__(
        self,
        bridge: Bridge,
        admission: Admission,
        config: ServeConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bridge, self._admission, self._config, self._clock = bridge, admission, config, clock
        self._draining = False
        self._failed = False
        self._hurried = False
        self.stuck = False  # a step does not end: whoever computes it is to be left behind
        self._tasks: set[asyncio.Task[None]] = set()
        self.stop_listening: Callable[[], None] = lambda: None
        self.exit_status = 0

    def problem(self) -> str | None:
        """Why the server is not ready, in one word; None when it is."""
        door = self._bridge.door
        if self._failed or not (self._draining or door.recovering or door.healthy):
            return "failed"
        if self._draining:
            return "draining"
        if door.recovering:
            return "restarting"
        return "stalled" if self._bridge.stalled_s() > self._config.stall_s else None

    def signalled(self) -> None:
        """SIGTERM or SIGINT."""
        if self._draining:
            self._hurried = True
            return
        self._draining = True
        self._admission.close("the server is shutting down")
        self._spawn(self._drain())

    def watch(self) -> None:
        """Notice an engine that ends although nobody asked it to."""
        self._spawn(self._watch())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, action: Literal["drain", "abort_all"]) -> None:
        try:
            self._bridge.door.send(Control(action))
        except EngineUnavailableError:
            logger.debug("the engine has ended already")

    async def _drain(self) -> None:
        """Wait for the requests, then for the step that aborts them, then no more. Never blocks a thread."""
        bridge = self._bridge
        try:
            self._tell("drain")
            deadline_s = self._clock() + self._config.shutdown_s
            while not self._ended() and not self._hurried and self._clock() < deadline_s:
                await asyncio.sleep(min(POLL_S, max(deadline_s - self._clock(), 0.0)))
            if not self._ended():
                self._tell("abort_all")
            patience_s = self._clock() + max(LAST_STEP_S - bridge.stalled_s(), 0.0)
            while not self._ended() and self._clock() < patience_s:
                await asyncio.sleep(POLL_S)
            if not self._ended():
                self.stuck, self.exit_status = True, 1
                logger.error("a step has not ended for %.0f s; the server ends without it", bridge.stalled_s())
                bridge.give_up()
            if bridge.door.error is not None:
                self._engine_failed()
            await self._answers_out()
        finally:
            self.stop_listening()

    def _engine_failed(self) -> None:
        """Say why, once; the process will end with status 1."""
        if self._failed:
            return
        self._failed = True
        self.exit_status = 1
        error = self._bridge.door.error
        if error is None:
            logger.error("the engine has ended unasked; the server ends")
        elif isinstance(error, LinnetError):
            logger.error("%s; the server ends", error)
        else:
            log_defect("the engine", error)
        self._admission.close("the engine has failed")

    def _ended(self) -> bool:
        return self._bridge.door.idle or not self._bridge.door.healthy

    async def _watch(self) -> None:
        while self._bridge.door.recovering or self._bridge.door.healthy:
            await asyncio.sleep(WATCH_S)
        if self._draining and self._bridge.door.error is None:
            return
        self._engine_failed()
        await self._answers_out()
        self.stop_listening()

    async def _answers_out(self) -> None:
        """Until every handler has left, or a few seconds."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                while self._admission.requests:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("%d requests had not taken their answers", self._admission.requests)
