# SPDX-License-Identifier: Apache-2.0
"""Between the event loop and the engine: messages down, events up, no polling.

A thread of the engine's door hands over all events of a step at once; one ``call_soon_threadsafe`` brings them to the
loop, where each sample's text is decoded, stop strings are looked for, and the request that waits is woken. Everything
but ``_deliver`` runs on the loop.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from linnet.api import Piece, Sample
from linnet.engine import (
    Abort,
    Deliver,
    EngineDoor,
    EngineEvent,
    EngineUnavailableError,
    ErrorInfo,
    Tokens,
    error_info,
)
from linnet.serve.admission import Ticket
from linnet.serve.defects import log_defect
from linnet.serve.metrics import Metrics
from linnet.serve.moderating import Reader, Threads

logger = logging.getLogger(__name__)

STOP_S = 10.0
FAILURES = ("error", "timeout", "queue_timeout", "abort")
"""Finish reasons of samples that ended without an answer."""


@dataclass(eq=False, slots=True)
class _InFlight:
    """A sample that the engine has not finished, and when its last tokens came."""

    sample: Sample
    job: "Job"
    last_token_s: float | None = None
    reader: Reader | None = None  # of a moderated sample


class Job:
    """All samples of one HTTP request. Created by ``Bridge.submit``; ``close`` it whatever happens."""

    def __init__(self, bridge: "Bridge", samples: Sequence[Sample], ticket: Ticket, arrival_s: float) -> None:
        self.samples = tuple(samples)
        self.arrival_s = arrival_s
        self.left = False  # the client is gone
        self.queued_s: float | None = None  # until the first of the samples was in a step
        self.first_token_s: float | None = None  # of any sample, after the arrival
        self._bridge = bridge
        self._ticket = ticket
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether every sample has finished."""
        return all(sample.done for sample in self.samples)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Until there are pieces, everything has ended or the client has left; False when the time passed first."""
        if self._pieces or self.left or self.done:
            return True
        self._news.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> list[Piece]:
        """Pieces that nobody has taken yet, in order; ``samples[piece.index]`` is whose they are."""
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    async def finish(self) -> None:
        """Until every sample has finished, one has failed, or the client has left."""
        while not (self.done or self.left or self.failed is not None):
            await self.wait()
            self._pieces.clear()

    @property
    def failed(self) -> Sample | None:
        """The first sample that ended without an answer."""
        return next((one for one in self.samples if one.done and one.stream.finish_reason in FAILURES), None)

    def leave(self) -> None:
        """The client has gone: end everything now. After the last sample nothing was lost."""
        if self.done:
            return
        self.left = True
        self.abort()
        self._news.set()

    def abort(self) -> None:
        """End the samples that run; their tickets come back when the engine has done it."""
        for sample in self.samples:
            if not sample.done:
                self._bridge.abort(sample)

    def close(self) -> None:
        """The handler is done with this job."""
        self.abort()
        self._ticket.leave()

    def began(self, queued_s: float) -> None:
        """For the bridge: how long a sample that has ended had waited."""
        self.queued_s = queued_s if self.queued_s is None else min(self.queued_s, queued_s)

    def put(self, sample: Sample, piece: Piece) -> None:
        """For the bridge: news of a sample."""
        self._pieces.append(piece)
        if sample.done:
            self._ticket.sample_done()
        self._news.set()


class Bridge:
    """See the module. ``connect`` makes the engine's door around a deliver function; nothing runs before ``start``."""

    def __init__(
        self,
        connect: Callable[[Deliver], EngineDoor],
        metrics: Callable[[], Metrics],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.door = connect(self._deliver)
        self._metrics = metrics
        self._clock = clock
        self._open: dict[int, _InFlight] = {}
        self._busy_since_s = 0.0
        self._moderators = Threads()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine; its events go to ``loop`` from now on."""
        self.loop = loop
        self.door.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End the engine. Blocks, so not on the loop; raises TimeoutError if it hangs."""
        self._moderators.close()
        self.door.stop(timeout_s)

    @property
    def in_flight(self) -> int:
        """Samples the engine has not finished."""
        return len(self._open)

    @property
    def adapters_in_use(self) -> frozenset[int | None]:
        """Numbers of the adapters that they go through; asked from any thread."""
        return frozenset(one.sample.submit.adapter for one in tuple(self._open.values()))

    def stalled_s(self) -> float:
        """How long there has been work and no step."""
        if not self._open:
            return 0.0
        return max(0.0, self._clock() - max(self.door.last_step_s, self._busy_since_s))

    def submit(self, samples: Sequence[Sample], ticket: Ticket, arrival_s: float) -> Job:
        """Send every sample of a request, or none. Raises EngineUnavailableError."""
        job = Job(self, samples, ticket, arrival_s)
        for sample in samples:
            if not self._open:
                self._busy_since_s = self._clock()
            one = self._open[sample.submit.request_id] = _InFlight(sample, job)
            if sample.stream.moderated:
                one.reader = self._reader(one)
            try:
                self.door.send(sample.submit)
            except EngineUnavailableError:
                del self._open[sample.submit.request_id]
                for other in samples:
                    if other.submit.request_id in self._open:
                        self.abort(other)
                    else:
                        other.done = True
                        ticket.sample_done()
                raise
        return job

    def give_up(self) -> None:
        """End every sample as if the engine had gone: it computes a step that does not end."""
        reason = error_info(EngineUnavailableError("the engine does not answer"))
        for one in tuple(self._open.values()):
            self._fail(one, reason)

    def abort(self, sample: Sample) -> None:
        """Ask the engine to end a sample."""
        try:
            self.door.send(Abort(sample.submit.request_id))
        except EngineUnavailableError:
            logger.debug("abort of a sample after the engine has ended")

    def _deliver(self, events: tuple[EngineEvent, ...]) -> None:
        """The door's thread."""
        if self.loop is None or self.loop.is_closed():
            return
        try:
            self.loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:  # the loop closed in between; nobody is left to tell
            return

    def _dispatch(self, events: tuple[EngineEvent, ...]) -> None:
        now_s = self._clock()
        for event in events:
            one = self._open.get(event.request_id)
            if one is None:
                continue
            try:
                self._handle(one, event, now_s)
            except Exception as error:  # a defect of ours in one sample must not reach the others
                log_defect("a sample", error)
                self._fail(one, error_info(error))

    def _reader(self, one: _InFlight) -> Reader:
        """For a moderated sample. It may have ended otherwise while the hook looked at its last piece."""

        def told(event: EngineEvent, piece: Piece) -> None:
            if self._open.get(one.sample.submit.request_id) is one:
                self._taken(one, event, piece, self._clock())

        def failed(info: ErrorInfo) -> None:
            if self._open.get(one.sample.submit.request_id) is one:
                self._fail(one, info)

        return Reader(one.sample, self._moderators, told, failed)

    def _handle(self, one: _InFlight, event: EngineEvent, now_s: float) -> None:
        if isinstance(event, Tokens):
            self._measure(one, len(event.token_ids), now_s)
        if one.reader is not None:
            one.reader.read(event)
        elif not (isinstance(event, Tokens) and one.sample.stream.stopped):
            self._taken(one, event, one.sample.read(event), now_s)

    def _taken(self, one: _InFlight, event: EngineEvent, piece: Piece, now_s: float) -> None:
        """An event has been read."""
        sample = one.sample
        if isinstance(event, Tokens):
            if sample.stream.stopped:
                self.abort(sample)
        else:
            sample.done = True
            if one.last_token_s is None and event.reason == "length":  # a prompt that was only scored
                self._metrics().prompt_tokens.inc(len(sample.submit.prompt_token_ids))
            if event.queued_s is not None:
                self._metrics().queued_s.observe(event.queued_s)
                one.job.began(event.queued_s)
            self._end(one, now_s)
        one.job.put(sample, piece)

    def _fail(self, one: _InFlight, info: ErrorInfo) -> None:
        sample = one.sample
        self.abort(sample)
        sample.stream.finish_reason, sample.stream.error = "error", info
        sample.done = True
        self._end(one, self._clock())
        one.job.put(sample, Piece("", finish_reason="error", index=sample.index))

    def _measure(self, one: _InFlight, tokens: int, now_s: float) -> None:
        metrics = self._metrics()
        metrics.count_generated(tokens)
        if one.last_token_s is None:
            waited_s = now_s - one.job.arrival_s
            metrics.first_token_s.observe(waited_s)
            one.job.first_token_s = waited_s if one.job.first_token_s is None else one.job.first_token_s
            metrics.prompt_tokens.inc(len(one.sample.submit.prompt_token_ids))
        else:
            metrics.next_token_s.observe(now_s - one.last_token_s)
        one.last_token_s = now_s

    def _end(self, one: _InFlight, now_s: float) -> None:
        sample = one.sample
        del self._open[sample.submit.request_id]
        metrics = self._metrics()
        metrics.finished(sample.stream.finish_reason or "error")
        metrics.request_s.observe(now_s - one.job.arrival_s)
        metrics.request_prompt_tokens.observe(len(sample.submit.prompt_token_ids))
        metrics.request_generation_tokens.observe(len(sample.stream.token_ids))
