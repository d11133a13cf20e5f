# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 connection over the C parser httptools, with the bounds it lacks, and errors in our form.

What a client can make the event loop do at a time is bounded: bytes are parsed SLICE_BYTES at a time, other work in
between; heads, header fields, chunks and trailers are counted while they are parsed. A request that is answered before
its body has come is the connection's last: what still comes is thrown away unparsed, for a moment, so that the client
gets to read the answer. Whatever could be read in two ways (RFC 9112, section 6.3) is a 400 and the end.

A request head must arrive within HEAD_S of its first byte (or of the connection); a client that reads nothing for
STUCK_S while an answer is waiting is cut off. A body's time is the application's business.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from linnet.serve.answers import encode, error_answer
from linnet.serve.errors import ApiError, head_too_large, invalid_http, unavailable

HEAD_S = 20.0
STUCK_S = 60.0
LINGER_S = 1.0
MOST_LINGER_BYTES = 32 << 20
SLICE_BYTES = 4 << 10
BODY_SLICE_BYTES = 64 << 10
"""Of a body whose length is declared: it costs the parser nothing."""
MOST_HEAD_BYTES = 32 << 10
MOST_HEADERS = 128
MOST_CHUNKS = 1 << 14
FIELD_BYTES = 4
"""Colon, space and line end of a header field."""


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """What a connection beyond the limit gets."""
    answer = error_answer(unavailable("too many connections are open"))
    answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


class _Flow(FlowControl):
    """Reading goes on through the connection, which may have bytes that are not parsed yet."""

    def __init__(self, transport: asyncio.Transport, go_on: Callable[[], None]) -> None:
        super().__init__(transport)
        self._go_on = go_on

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._go_on()


class Connection(HttpToolsProtocol):
    """One client's connection: bounded parsing, framing that can be read in one way only, and an orderly end."""

    _head_timer: asyncio.TimerHandle | None = None
    _stuck_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport, self._go_on)
        self._backlog = memoryview(b"")
        self._scheduled = False
        self._deaf = False  # whatever still comes is thrown away
        self._lingered_bytes = 0
        self._head_bytes = self._raw_head_bytes = self._chunks = 0
        self._in_head = True
        self._plain_body = False
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self.app = _full
        self.limit_concurrency = None  # uvicorn's own answer is no error object
        self._arm_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        for timer in (self._stuck_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > MOST_LINGER_BYTES:
                self.transport.close()
            return
        self._backlog = memoryview(bytes(self._backlog) + data if self._backlog else data)
        if not self._scheduled:
            self._parse()
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._head_timer is None:
            self._arm_head()

    def _parse(self) -> None:
        """The next slice; the others follow when everybody else has had a turn."""
        self._scheduled = False
        if self.parser is None or self._deaf or self.transport.is_closing():
            return
        most = BODY_SLICE_BYTES if self._plain_body else SLICE_BYTES
        part, self._backlog = self._backlog[:most], self._backlog[most:]
        try:
            if self._in_head:
                self._raw_head_bytes += len(part)
            self.parser.feed_data(part)
            if self._in_head and self._raw_head_bytes > MOST_HEAD_BYTES:
                raise head_too_large(MOST_HEAD_BYTES)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError as error:
            reason = error.__context__
            self._refuse(reason if isinstance(reason, ApiError) else invalid_http())
        except ApiError as error:
            self._refuse(error)
        else:
            if self._backlog:
                self.transport.pause_reading()
            self._go_on()

    def _go_on(self) -> None:
        """Parse what is there, else read, unless the application has enough."""
        if self.flow.read_paused or self.transport.is_closing():
            return
        if not self._backlog:
            self.transport.resume_reading()
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._parse)

    # What the parser says. An ApiError ends the parsing at once, and the connection.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._plain_body = True, False
        self._head_bytes = self._raw_head_bytes = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + FIELD_BYTES)
        if not self._in_head:
            return  # a trailer is no header field
        if len(self.headers) >= MOST_HEADERS:
            raise head_too_large(MOST_HEAD_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._check_framing()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MOST_CHUNKS:
            raise invalid_http(f"the body has more than {MOST_CHUNKS} chunks", "too_many_chunks")

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MOST_HEAD_BYTES:
            raise head_too_large(MOST_HEAD_BYTES)

    def _check_framing(self) -> None:
        """Raises ApiError for a request whose end two readers could see in two places; the parser refuses others."""
        lengths = [value for name, value in self.headers if name == b"content-length"]
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if len(lengths) > 1 or (lengths and codings):
            raise invalid_http("the length of the body is given twice")
        if codings and (codings != [b"chunked"] or self.parser.get_http_version() != "1.1"):
            raise invalid_http("the only Transfer-Encoding that is accepted is chunked, in HTTP/1.1")
        if self.parser.should_upgrade() and (codings or (lengths and lengths[0].strip() != b"0")):
            raise invalid_http("a request with a body cannot ask for another protocol")
        self._plain_body = bool(lengths)

    def _ignore_upgrade(self) -> None:
        """No other protocol is spoken here: the request is answered, and is the connection's last."""
        self._deaf = True
        self._backlog = memoryview(b"")
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # Answers.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, self._closing_early(cycle, app))  # type: ignore[arg-type]

    def _closing_early(self, cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
        """``app``, and the end of the connection where it answers before the body has come."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            async def answer(message: Message) -> None:
                early = message["type"] == "http.response.start" and cycle.more_body
                if early:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
                await send(message)
                if early:
                    cycle.keep_alive = True  # uvicorn would close at once, and the client might not see the answer

            await app(scope, receive, answer)

        return call

    def on_response_complete(self) -> None:
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self.server_state.total_requests += 1
            self._linger()
            return
        super().on_response_complete()

    def _linger(self) -> None:
        """The answer is out and more of the request may come: it is thrown away for a moment, then all ends."""
        self._deaf = True
        self._backlog = memoryview(b"")
        if self.transport.is_closing():
            return
        with suppress(OSError):  # the client has gone meanwhile
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self.transport.resume_reading()

    def _refuse(self, error: ApiError) -> None:
        """Bytes that are no request: the usual error object, and the end. An answer that has begun is cut off."""
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.pipeline.clear()
        if begun:
            self.transport.close()
            return
        body = encode(error.body())
        fields = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **error.headers,
            "Connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 {error.status} {REASONS[error.status]}\r\n{head}\r\n".encode() + body)
        self._linger()

    # Time.

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck_timer is None:
            self._stuck_timer = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
            self._stuck_timer = None
        super().resume_writing()

    def _arm_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}
