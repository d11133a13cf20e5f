# SPDX-License-Identifier: Apache-2.0
"""A file of requests, answered by the routes of a server that listens nowhere.

Every line goes through the same application as a request over HTTP, so what it is answered with is what a client gets:
status, body and error are the server's own. So many lines are open at a time as keep the engine full.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from linnet.api import ServedModel
from linnet.errors import LinnetError
from linnet.serve.app import Server, build_server
from linnet.serve.batch_files import Answers, Line, Requests
from linnet.serve.body import parse_object
from linnet.serve.bridge import STOP_S
from linnet.serve.errors import ApiError
from linnet.serve.run import signals
from linnet.settings import ServeConfig

URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/score",
    "/v1/rerank",
)
FIELDS = ("custom_id", "method", "url", "body")
WAIT_S = 0.05
"""Before a line is asked again that the full queue had no room for (its n is large), or whose engine is restarting."""
MOST_LOST = 3
"""Engines that may die under one line before it counts as answered with that."""


class BatchInterrupted(Exception):
    """A signal came. What had been answered is kept."""


@dataclass
class BatchCounts:
    """How far a batch is. refused: answered with another status than 200. bad: lines that are no request."""

    total: int
    done: int = 0
    refused: int = 0
    bad: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def count(self, record: dict[str, Any]) -> None:
        """One line is answered."""
        self.done += 1
        response = record["response"]
        if response is None:
            self.bad += 1
            return
        self.refused += response["status_code"] != 200
        usage = (response["body"] or {}).get("usage") or {}
        self.prompt_tokens += usage.get("prompt_tokens") or usage.get("input_tokens") or 0
        self.new_tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0


class BadLine(Exception):
    """A line that is no request: code and sentence."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.custom_id = code, message, custom_id


def run_batch(
    model: ServedModel,
    config: ServeConfig,
    requests: Requests,
    answers: Answers,
    progress: Callable[[BatchCounts], None] = lambda counts: None,
) -> BatchCounts:
    """Answer what has no answer yet, then publish. Raises BatchInterrupted, ConfigError for answers to other requests,
    LinnetError where the engine or the disk fails; what was answered by then is kept."""
    return asyncio.run(_Batch(model, config, requests, answers, progress).run())


class _Batch:
    def __init__(
        self,
        model: ServedModel,
        config: ServeConfig,
        requests: Requests,
        answers: Answers,
        progress: Callable[[BatchCounts], None],
    ) -> None:
        self._model, self._config = model, config
        self._requests, self._answers, self._progress = requests, answers, progress
        self._order = [line.identity for line in requests.lines(model.numerics_id)]
        answers.check(self._order)
        self._counts = BatchCounts(len(self._order), done=len(answers))
        self._ids: set[str] = set()

    async def run(self) -> BatchCounts:
        server = build_server(self._model, self._config)
        stopping = asyncio.Event()
        server.bridge.start(asyncio.get_running_loop())
        try:
            with signals(asyncio.get_running_loop(), stopping.set):
                await self._answer_all(server, stopping)
        finally:
            server.generation.close()
            server.conversations.close()
            await asyncio.to_thread(server.bridge.stop, STOP_S)
        self._answers.publish(self._order)
        return self._counts

    async def _answer_all(self, server: Server, stopping: asyncio.Event) -> None:
        """A bounded set of tasks over the lines; the first one that raises ends them all."""
        most = 2 * self._model.facts.scheduling.max_sequences
        open_tasks: set[asyncio.Task[None]] = set()
        stop = asyncio.ensure_future(stopping.wait())
        lines = self._lines()
        self._progress(self._counts)
        try:
            while True:
                while len(open_tasks) < most and (asked := next(lines, None)) is not None:
                    open_tasks.add(asyncio.ensure_future(self._answer(server, *asked)))
                if not open_tasks:
                    return
                done, _ = await asyncio.wait({*open_tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
                if stop in done:
                    raise BatchInterrupted
                for task in done:
                    task.result()
                open_tasks -= done
        finally:
            for task in (*open_tasks, stop):
                task.cancel()
            await asyncio.gather(*open_tasks, stop, return_exceptions=True)

    def _lines(self) -> Iterator[tuple[Line, dict[str, Any] | BadLine]]:
        """What has no answer yet. All lines are read: ids must be told apart over the whole file."""
        known = iter(self._order)
        for line in self._requests.lines(self._model.numerics_id):
            if line.identity != next(known, None):
                raise LinnetError(f"{self._requests.path} was changed while it was read")
            try:
                request: dict[str, Any] | BadLine = self._request(line)
            except BadLine as error:
                request = error
            if line.identity not in self._answers:
                yield line, request

    def _request(self, line: Line) -> dict[str, Any]:
        """The object on a line. Raises BadLine."""
        if line.content is None:
            raise BadLine("request_too_large", f"the line is longer than {self._config.limits.body_bytes} bytes")
        try:
            value = parse_object(line.content)
        except ApiError as error:
            raise BadLine("invalid_json", error.message.replace("the body", "the line")) from None
        custom_id = value.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise BadLine("invalid_custom_id", "custom_id must be a text that names the line")
        if custom_id in self._ids:
            raise BadLine("duplicate_custom_id", f"custom_id {custom_id[:80]!r} is that of an earlier line", custom_id)
        self._ids.add(custom_id)
        unknown = next((name for name in value if name not in FIELDS), None)
        problem = (
            f"unknown field {unknown[:80]!r}; accepted are {', '.join(FIELDS)}" if unknown is not None
            else f"method is {_shown(value.get('method'))}; accepted is POST" if value.get("method") != "POST"
            else f"url is {_shown(value.get('url'))}; accepted are {', '.join(URLS)}" if value.get("url") not in URLS
            else "body must be an object" if not isinstance(value.get("body"), dict)
            else "stream is true; a batch has whole answers" if value["body"].get("stream")
            else None
        )  # fmt: skip
        if problem is not None:
            raise BadLine("invalid_request", problem, custom_id)
        return value

    async def _answer(self, server: Server, line: Line, request: dict[str, Any] | BadLine) -> None:
        record: dict[str, Any] = {"id": line.identity, "custom_id": None, "response": None, "error": None}
        if isinstance(request, BadLine):
            message = f"line {line.number}: {request.message}"
            record |= {"custom_id": request.custom_id, "error": {"code": request.code, "message": message}}
        else:
            response = await self._response(server, line, request)
            record |= {"custom_id": request["custom_id"], "response": response}
        self._answers.add(record)
        self._counts.count(record)
        self._progress(self._counts)

    async def _response(self, server: Server, line: Line, request: dict[str, Any]) -> dict[str, Any]:
        """What a client would get, asked again while it is told to try again."""
        body = json.dumps(request["body"], ensure_ascii=False).encode()
        lost = 0
        while True:
            status, answer = await ask(server.app, request["url"], body, line.identity)
            code = (answer.get("error") or {}).get("code") if status in (429, 503) else None
            lost += code == "engine_lost"
            if status not in (429, 503) or lost >= MOST_LOST:
                return {"status_code": status, "request_id": line.identity, "body": answer}
            if status == 503 and code != "engine_lost" and server.lifecycle.problem() != "restarting":
                raise LinnetError(f"{answer['error']['message']}; the same command goes on with what has no answer yet")
            await asyncio.sleep(WAIT_S)


async def ask(app: ASGIApp, url: str, body: bytes, request_id: str) -> tuple[int, dict[str, Any]]:
    """One request to an application in this process, whose client stays to the end: status and JSON."""
    parts: list[bytes] = []
    status = 0
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client never leaves
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = {
        b"host": b"localhost",
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        b"x-request-id": request_id.encode(),
    }
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers.items()),
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status, json.loads(b"".join(parts))


def _shown(value: Any) -> str:
    return repr(value)[:80]
