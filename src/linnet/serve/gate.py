# SPDX-License-Identifier: Apache-2.0
"""The outermost layer: every request passes it before anything is routed, every answer on its way out.

In this order: request id, Host and Origin, key, then the application. Deny by default: a path is open without a key
only if it is one of ``open_paths``, whatever routes exist.
"""

import re
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linnet.serve.answers import JsonAnswer, error_answer
from linnet.serve.defects import log_defect
from linnet.serve.errors import ApiError, internal
from linnet.serve.metrics import Metrics
from linnet.serve.records import RequestRecord, Teller
from linnet.serve.security import PUBLIC_ROUTES, Hosts, Keys

_TRACE = (b"traceparent", b"tracestate")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class Gate:
    """See the module. An ASGI application around another."""

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Hosts, metrics: Metrics, open_paths: frozenset[str]) -> None:
        self._app, self._keys, self._hosts, self._metrics = app, keys, hosts, metrics
        self._open_paths = open_paths
        self.watchers: Sequence[Teller] = ()  # told of every request that is worth it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fields: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            fields.setdefault(name, []).append(value)
        request_id = _request_id(fields.get(b"x-request-id", []))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        record = state["record"] = RequestRecord(request_id, scope["method"], _trace(fields))
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [
                        *message.get("headers", ()),
                        (b"x-request-id", request_id.encode()),
                        (b"x-content-type-options", b"nosniff"),
                    ],
                }
            await send(message)

        try:
            probe = scope["http_version"] == "1.0" and scope["path"] in PUBLIC_ROUTES
            if not probe or b"host" in fields or b"origin" in fields:  # HTTP/1.0 has no Host; load balancers ask so
                self._hosts.check(fields.get(b"host", []), fields.get(b"origin", []))
            if scope["path"] not in self._open_paths:
                state["salt"] = self._keys.check(fields.get(b"authorization", []))
                if self._keys.required:
                    record.belongs_to(state["salt"])
            await self._app(scope, receive, answer)
        except ApiError as error:
            await self._refuse(error_answer(error), status, scope, receive, answer)
        except Exception as error:
            log_defect(f"request {request_id}", error)
            await self._refuse(error_answer(internal(request_id)), status, scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._metrics.answered(route, status)
            record.end(route, status)
            self._tell(record)

    def _tell(self, record: RequestRecord) -> None:
        for tell in self.watchers if record.worth_telling else ():
            try:
                tell(record)
            except Exception as error:  # the answer is out; who wanted to know of it gets nothing
                log_defect(f"telling of request {record.request_id}", error)

    async def _refuse(self, response: JsonAnswer, status: int, scope: Scope, receive: Receive, send: Send) -> None:
        if not status:
            await response(scope, receive, send)


def _trace(fields: dict[bytes, list[bytes]]) -> dict[str, str]:
    """The trace that the client says the request belongs to (W3C Trace Context)."""
    return {name.decode(): b",".join(fields[name]).decode("latin-1") for name in _TRACE if name in fields}


def _request_id(given: list[bytes]) -> str:
    """The client's own id where it is harmless, else a new one."""
    text = given[0].decode("latin-1") if len(given) == 1 else ""
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
