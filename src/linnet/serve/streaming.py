# SPDX-License-Identifier: Apache-2.0
"""Server-sent events. ``[DONE]`` follows a complete answer only; an error in mid-stream is an ``error`` event."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from linnet.api import Piece, Sample
from linnet.serve.answers import encode
from linnet.serve.bridge import FAILURES, Job
from linnet.serve.defects import log_defect
from linnet.serve.errors import ApiError, internal
from linnet.serve.shapes import Shape

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def frame(value: Any) -> bytes:
    """One data event; one that has a type is named so."""
    name = value.get("type")
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + encode(value) + b"\n\n"


def error_frame(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return b"event: error\ndata: " + encode(error.body()) + b"\n\n"


class EventStream(Response):
    """Sends frames as they come; ``stack`` is closed at the end, whatever the end is."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], stack: ExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames, self._stack = frames, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._frames:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Stream:
    """The frames of one job."""

    def __init__(
        self,
        job: Job,
        shape: Shape,
        keep_alive_s: float | None,
        include_usage: bool,
        complete: Callable[[], Awaitable[None]],
    ) -> None:
        """``complete`` is called once, when the answer is, before its last frames go out."""
        self._job, self._shape, self._keep_alive_s, self._include_usage = job, shape, keep_alive_s, include_usage
        self._complete = complete

    async def frames(self, failure: Callable[[Sample], ApiError], request_id: str) -> AsyncIterator[bytes]:
        """Until the end, or until the client has left. ``failure``: the error of a sample that ended badly."""
        try:
            async for part in self._frames(failure):
                yield part
        except Exception as error:  # a defect of ours; the status is out, so an event says it
            log_defect(f"request {request_id}", error)
            yield error_frame(internal(request_id))

    async def _frames(self, failure: Callable[[Sample], ApiError]) -> AsyncIterator[bytes]:
        job = self._job
        while True:
            if not await job.wait(self._keep_alive_s):
                yield KEEP_ALIVE
                continue
            if job.left:
                return
            bad = job.failed
            pieces = [] if self._shape.held else job.take()
            told = ((job.samples[piece.index], piece) for piece in pieces)
            parts = [self._parts(sample, piece) for sample, piece in told if sample is not bad or piece.text]
            if bad is not None:
                job.abort()
                yield b"".join([*parts, error_frame(failure(bad))])
                return
            done = job.done
            if done:
                await self._complete()
            if parts:
                yield b"".join(parts)
            if done:
                break
            if self._shape.held:
                job.take()
        yield await asyncio.to_thread(self._end) if self._shape.held or self._include_usage else self._end()

    def _end(self) -> bytes:
        parts = []
        if self._shape.held:
            parts = [self._parts(sample, whole_piece(sample)) for sample in self._job.samples]
        if self._include_usage:
            parts.append(frame(self._shape.usage_chunk(self._job.samples)))
        return b"".join([*parts, DONE if self._shape.says_done else b""])

    def _parts(self, sample: Sample, piece: Piece) -> bytes:
        if piece.finish_reason in FAILURES:
            piece = Piece(piece.text, piece.token_ids, piece.logprobs, None, piece.index)
        return b"".join(frame(chunk) for chunk in self._shape.chunks(sample, piece))


def whole_piece(sample: Sample) -> Piece:
    """Everything a finished sample gave, as one piece."""
    stream = sample.stream
    return Piece(stream.text, tuple(stream.token_ids), tuple(stream.logprobs), stream.finish_reason, sample.index)
