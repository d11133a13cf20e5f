# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model behind a URL: any server with OpenAI's chat completions. Standard library only."""

import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

from linnet.cli.address import Address
from linnet.cli.partners import BEGIN_AGAIN, Message, Said
from linnet.errors import CapacityError, ConfigError, LinnetError

CONNECT_S = 10.0
DONE = b"data: [DONE]"
LOOK_S = 0.1
"""How often Ctrl-C is looked for while nothing comes."""
MOST_BYTES = 1 << 20
"""Of a line, and of an answer that is no stream: what a server sends is not kept without end."""


class RemotePartner:
    """A Partner. ``asked``: parameters that go with every request; the others are the server's business."""

    def __init__(self, address: Address, model: str, asked: Mapping[str, Any]) -> None:
        self.model = model
        self._address, self._asked = address, dict(asked)

    def answer(self, messages: Sequence[Message], cancelled: Callable[[], bool]) -> Iterator[Said]:
        """See Partner. Raises LinnetError where the server refuses, breaks off or is not there."""
        body = {"model": self.model, "messages": list(messages), "stream": True, **self._asked}
        complete = False
        for line in _streamed(self._address, "/v1/chat/completions", body, cancelled):
            said = _said(line)
            if said is not None:
                yield said
            complete |= line.strip() == DONE or (said is not None and said.ended is not None)
        if not complete and not cancelled():  # an end is said; http.client takes a lost connection for one
            raise _broken(self._address)


def models(address: Address) -> list[str]:
    """Names that the server has. Raises LinnetError."""
    connection = _connected(address)
    try:
        answer = json.loads(_asked(connection, address, "/v1/models", None).read(MOST_BYTES))
        return [str(one["id"]) for one in answer["data"]]
    except (OSError, HTTPException, ValueError, KeyError, TypeError, RecursionError):
        raise CapacityError(f"{address} does not answer as a server of OpenAI's API") from None
    finally:
        connection.close()


def chosen(address: Address, wanted: str | None) -> str:
    """The model to talk to: the one that is named, or the only one. Raises ConfigError, LinnetError."""
    if wanted is not None:
        return wanted
    names = models(address)
    if len(names) != 1:
        shown = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
        raise ConfigError(f"{address} has {len(names)} models: {shown}; choose one with --served-model-name")
    return names[0]


def _connected(address: Address) -> HTTPConnection:
    """Raises CapacityError where nobody answers."""
    connection: HTTPConnection
    if address.secure:
        context = ssl.create_default_context()
        connection = HTTPSConnection(address.host, address.port, timeout=CONNECT_S, context=context)
    else:
        connection = HTTPConnection(address.host, address.port, timeout=CONNECT_S)
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        raise CapacityError(f"{address} does not answer: {error.strerror or error}") from None
    connection.sock.settimeout(None)  # an answer may take its time
    return connection


def _asked(connection: HTTPConnection, address: Address, path: str, body: dict[str, Any] | None) -> HTTPResponse:
    """An answer of status 200. Raises LinnetError for another, OSError or HTTPException where none comes."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    if address.key:
        headers["Authorization"] = f"Bearer {address.key}"
    data = None if body is None else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", address.prefix + path, data, headers)
    response = connection.getresponse()
    if response.status != 200:
        raise _refusal(response)
    return response


def _streamed(address: Address, path: str, body: dict[str, Any], cancelled: Callable[[], bool]) -> Iterator[bytes]:
    """Lines as they come, read by a thread of its own: who waits for one can be interrupted."""
    connection = _connected(address)
    link, news = connection.sock, queue.SimpleQueue[bytes | LinnetError | None]()

    def read() -> None:
        try:
            for line in iter(partial(_asked(connection, address, path, body).readline, MOST_BYTES), b""):
                news.put(line)
            news.put(None)
        except LinnetError as error:
            news.put(error)
        except (OSError, ValueError, HTTPException, AttributeError):  # closed under it, or broken off
            news.put(_broken(address))

    threading.Thread(target=read, daemon=True).start()
    try:
        while not cancelled():
            try:
                line = news.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if line is None:
                return
            if isinstance(line, LinnetError):
                raise line
            yield line
    finally:
        with suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)  # the server learns that nobody listens, and so does the thread
        link.close()


def _broken(address: Address) -> CapacityError:
    return CapacityError(f"{address} broke off its answer")


def _said(line: bytes) -> Said | None:
    """What one line of the stream says; None: nothing for people. Raises LinnetError for an error of the server's."""
    if not line.startswith(b"data:") or line.strip() == DONE:
        return None
    try:
        event = json.loads(line[5:])
    except (ValueError, RecursionError):
        return None
    if _member(event, "error"):
        raise LinnetError(f"the server says: {_message(event)}")
    choices = _member(event, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return None
    content = _member(choice.get("delta"), "content")
    text, reason = content if isinstance(content, str) else "", choice.get("finish_reason")
    if reason is None:
        return Said(text) if text else None
    return Said(text, "the answer was ended: its length is bounded (--max-tokens), or the context is full"
                if reason == "length" else "")  # fmt: skip


def _refusal(response: HTTPResponse) -> LinnetError:
    """Why a server did not answer, for people."""
    try:
        value = json.loads(response.read(MOST_BYTES))
    except (OSError, ValueError, HTTPException, RecursionError):
        value = None
    message = _message(value)
    if response.status in (401, 403):
        hint = "a key comes from --api-key-file or LINNET_API_KEY"
        return ConfigError(f"the server says {response.status}: {message}; {hint}")
    if _member(_member(value, "error"), "code") == "context_length_exceeded":
        return ConfigError(f"{message}: {BEGIN_AGAIN}")
    kind = ConfigError if response.status < 500 else CapacityError
    return kind(f"the server says {response.status}: {message}")


def _message(value: Any) -> str:
    error = _member(value, "error")
    text = _member(error, "message") if isinstance(error, dict) else error
    return str(text)[:500] if text else "nothing more"


def _member(value: Any, name: str) -> Any:
    """Of an object; None of what is none: another's server may send anything."""
    return value.get(name) if isinstance(value, dict) else None
