# SPDX-License-Identifier: Apache-2.0
"""Many streamed requests over HTTP/1.1, with the time of every piece. Standard library only: what is measured is the
server, so a request costs its client as little as can be."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from linnet.cli.address import Address


class Refused(Exception):
    """The server answered with something else than 200, or broke off."""


@dataclass
class Answer:
    """One request's times, in seconds of one clock. pieces: when each piece of text came."""

    asked_tokens: int
    due_s: float
    began_s: float = 0.0
    pieces: list[float] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None


async def ask(address: Address, path: str, body: dict[str, Any] | None) -> AsyncIterator[bytes]:
    """The lines of an answer. Raises Refused, OSError."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {address.prefix}{path} HTTP/1.1",
        f"Host: {address.host}:{address.port}",
    ]
    lines += ["Connection: close", f"Content-Length: {len(data)}", "Content-Type: application/json"]
    if address.key:
        lines.append(f"Authorization: Bearer {address.key}")
    context = ssl.create_default_context() if address.secure else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, limit=1 << 22)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        content = _chunks(reader) if "transfer-encoding: chunked" in head else _whole(reader)
        status = head.split(" ", 2)[1]
        if status != "200":
            raise Refused(_reason(status, b"".join([part async for part in content])))
        rest = b""
        async for part in content:
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line
        if rest:
            yield rest
    except asyncio.IncompleteReadError:
        raise Refused("the answer broke off") from None
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _whole(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part


def _reason(status: str, content: bytes) -> str:
    try:
        return f"{status}: {json.loads(content)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


async def models(address: Address) -> list[str]:
    """Names that the server has. Raises Refused, OSError."""
    found = json.loads(b"".join([line async for line in ask(address, "/v1/models", None)]))
    return [str(one["id"]) for one in found["data"]]


async def complete(address: Address, body: dict[str, Any], answer: Answer) -> None:
    """Stream one completion into ``answer``; what goes wrong is its ``error``."""
    answer.began_s = time.perf_counter()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async for line in ask(address, "/v1/completions", body):
            if line.startswith(b"event: error"):
                raise Refused("an error in the middle of the stream")
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if any(choice.get("text") for choice in chunk.get("choices", ())):
                answer.pieces.append(time.perf_counter())
            if usage := chunk.get("usage"):
                answer.prompt_tokens, answer.new_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        answer.new_tokens = answer.new_tokens or len(answer.pieces)
    except (Refused, OSError) as error:
        answer.error = str(error) or type(error).__name__
    answer.end_s = time.perf_counter()
