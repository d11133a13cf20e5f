# SPDX-License-Identifier: Apache-2.0
"""The life of a server: ready, draining, ended or failed; and what /health says about it.

First SIGTERM or SIGINT: not ready, 503 for new work, unfinished requests run on until ``shutdown_s``, then exit 0. A
second signal aborts them at once. An engine that fails ends the process with status 1, after the answers are out.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from linnet.engine import Control, EngineUnavailableError
from linnet.serve.admission import Admission
from linnet.serve.bridge import Bridge
from linnet.serve.config import ServeConfig

logger = logging.getLogger(__name__)

WATCH_S = 0.25
LAST_WORDS_S = 5.0


class Lifecycle:
    """Event loop only. ``stop_listening`` is called once, when the process may go."""

    def __init__(self, bridge: Bridge, admission: Admission, config: ServeConfig) -> None:
        self._bridge, self._admission, self._config = bridge, admission, config
        self._draining = False
        self._failed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.stop_listening: Callable[[], None] = lambda: None
        self.exit_status = 0

    def problem(self) -> str | None:
        """Why the server is not ready, in one word; None when it is."""
        if self._failed or (not self._draining and not self._bridge.door.healthy):
            return "failed"
        if self._draining:
            return "draining"
        return "stalled" if self._bridge.stalled_s() > self._config.stall_s else None

    def signalled(self) -> None:
        """SIGTERM or SIGINT."""
        if self._draining:
            self._abort_all()
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

    def _abort_all(self) -> None:
        try:
            self._bridge.door.send(Control("abort_all"))
        except EngineUnavailableError:
            logger.debug("the engine has ended already")

    async def _drain(self) -> None:
        try:
            await asyncio.to_thread(self._bridge.door.drain, self._config.shutdown_s)
            await self._answers_out()
        finally:
            self.stop_listening()

    async def _watch(self) -> None:
        while self._bridge.door.healthy:
            await asyncio.sleep(WATCH_S)
        if self._draining and self._bridge.door.error is None:
            return
        self._failed = True
        self.exit_status = 1
        kind = type(self._bridge.door.error).__name__
        logger.error("the engine has failed (%s); the server ends", kind)
        self._admission.close("the engine has failed")
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
