# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 connection with the time limits it lacks, and errors in our form.

A request head must arrive within HEAD_S of its first byte (or of the connection); a client that reads nothing for
STUCK_S while an answer is waiting is cut off. A body's time is the application's business.
"""

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from linnet.serve.answers import encode, error_answer
from linnet.serve.errors import invalid, unavailable

HEAD_S = 20.0
STUCK_S = 60.0
MOST_HEAD_BYTES = 32 << 10


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """What a connection beyond the limit gets."""
    answer = error_answer(unavailable("too many connections are open"))
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


class Connection(H11Protocol):
    """See the module."""

    _head_timer: asyncio.TimerHandle | None = None
    _stuck_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self.app = _full
        self.limit_concurrency = None  # uvicorn's own answer is no error object
        self._arm_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._head_timer is None:
            self._arm_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck_timer is None:
            self._stuck_timer = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
            self._stuck_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Bytes that are not HTTP: the usual error object."""
        body = encode(invalid("this is not a valid HTTP/1.1 request", code="invalid_http").body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-should-retry", b"false"),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _arm_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
