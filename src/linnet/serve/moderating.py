# SPDX-License-Identifier: Apache-2.0
"""Moderated samples: what the engine says of them is read in threads of their own, where the hook may take its time.

Of a sample in the order of the events, one at a time; what came meanwhile is shown to the hook in one piece. The
threads are daemons, so that a hook that never returns cannot keep the server from ending.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from linnet.api import Piece, Sample, failure
from linnet.engine import EngineEvent, ErrorInfo, Tokens, error_info
from linnet.serve.defects import log_defect

THREADS = 4
MOST_S = 30.0
"""A hook that takes longer over one piece has failed, and its request with it."""


class Reader:
    """Reads one sample's events. Event loop only; ``told`` gets each event with its piece, ``failed`` why there is none
    (then no more is read)."""

    def __init__(
        self,
        sample: Sample,
        threads: "Threads",
        told: Callable[[EngineEvent, Piece], None],
        failed: Callable[[ErrorInfo], None],
        most_s: float = MOST_S,
    ) -> None:
        self._sample, self._threads, self._told, self._failed = sample, threads, told, failed
        self._most_s = most_s
        self._events: deque[EngineEvent] = deque()
        self._task: asyncio.Task[None] | None = None

    def read(self, event: EngineEvent) -> None:
        """Its turn comes."""
        self._events.append(event)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._events:
                event = self._next()
                async with asyncio.timeout(self._most_s):
                    piece = await self._threads.run(partial(self._sample.read, event))
                self._told(event, piece)
        except TimeoutError:
            self._failed(failure(f"the moderation hook did not answer within {self._most_s:g} s"))
            return  # the task stays: later events find nobody
        except Exception as error:
            log_defect("a moderated sample", error)
            self._failed(error_info(error))
            return
        self._task = None

    def _next(self) -> EngineEvent:
        """The next event, with the tokens that came behind it."""
        event = self._events.popleft()
        while isinstance(event, Tokens) and self._events and isinstance(more := self._events[0], Tokens):
            event = Tokens(event.request_id, event.token_ids + more.token_ids, event.logprobs + more.logprobs)
            self._events.popleft()
        return event


class Threads:
    """So many daemon threads, started with the first work."""

    def __init__(self, count: int = THREADS) -> None:
        self._count = count
        self._work: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started: list[threading.Thread] = []

    def run(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Event loop only."""
        if len(self._started) < self._count:
            thread = threading.Thread(target=self._serve, name="linnet-moderation", daemon=True)
            self._started.append(thread)
            thread.start()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """End those that are idle, and the others when they are."""
        for _ in self._started:
            self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                result, error = work(), None
            except BaseException as caught:
                result, error = None, caught
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():  # nobody waits any more
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
