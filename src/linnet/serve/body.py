# SPDX-License-Identifier: Apache-2.0
"""Request bodies: read within a size and a time, then parsed as the JSON that RFC 8259 means and nothing more.

Refused with 400: invalid UTF-8, duplicate keys, NaN and Infinity, numbers beyond double or 64 bits, lone surrogates,
nesting deeper than 64, anything but an object.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np

from linnet.serve.admission import Ticket
from linnet.serve.errors import ApiError, gone, invalid, media_type, too_large

MOST_DEPTH = 64
MOST_DIGITS = 20

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1

Receive = Callable[[], Awaitable[Any]]


class _Refused:
    """Stands for a number that is none, until its place in the body is known."""

    def __init__(self, message: str) -> None:
        self.message = message


_CONSTANTS = {name: _Refused(f"{name} is not a JSON number") for name in ("NaN", "Infinity", "-Infinity")}
_TOO_LARGE = _Refused("a number is too large for a double")
_TOO_LONG = _Refused(f"an integer has more than {MOST_DIGITS} digits")


def check_content_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises ApiError 415 unless the body is said to be plain JSON in UTF-8."""
    fields = {name: value.decode("latin-1") for name, value in headers}
    kind, _, options = fields.get(b"content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise media_type("the body must be sent as Content-Type: application/json")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", options)
    if charset is not None and charset.group(1).lower() not in ("utf-8", "utf8"):
        raise media_type("the body must be JSON in UTF-8")
    if fields.get(b"content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise media_type("compressed bodies are not accepted")


async def read_body(
    headers: Iterable[tuple[bytes, bytes]], receive: Receive, most: int, within_s: float, ticket: Ticket
) -> bytes:
    """The whole body; its bytes are charged to ``ticket`` as they come. Raises ApiError 400, 413, 429, 499."""
    declared = next((int(value) for name, value in headers if name == b"content-length"), 0)
    if declared > most:
        raise too_large(most)
    ticket.charge(declared)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise gone()
                part = message.get("body", b"")
                size += len(part)
                more = message.get("more_body", False)
                if size > most:
                    break
                if size > declared:
                    ticket.charge(size - max(declared, size - len(part)))
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            "invalid_request_error",
            f"the request body did not arrive within {within_s:g} s",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None
    if size > most:
        raise too_large(most)
    return b"".join(parts)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``. Raises ApiError 400; the message never shows the body."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    if too_deep(body):
        raise invalid(f"the body is nested deeper than {MOST_DEPTH} levels", code="invalid_json")
    refused: list[_Refused] = []

    def kept(one: _Refused) -> _Refused:
        if not refused:
            refused.append(one)
        return one

    def real(digits: str) -> float | _Refused:
        number = float(digits)
        return number if math.isfinite(number) else kept(_TOO_LARGE)

    def integer(digits: str) -> int | _Refused:
        return int(digits) if len(digits) <= MOST_DIGITS else kept(_TOO_LONG)

    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=lambda name: kept(_CONSTANTS[name]),
            parse_float=real,
            parse_int=integer,
        )
    except json.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error.msg} (character {error.pos})", code="invalid_json") from None
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None
    if refused:
        raise invalid(refused[0].message, _place(value, refused[0], ""), "invalid_json")
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    if _SURROGATE.search(body):
        _check_scalars(value, "")
    return value


def too_deep(body: bytes) -> bool:
    """Whether brackets outside strings nest deeper than MOST_DEPTH. Linear; big bodies leave the interpreter free."""
    flat = np.frombuffer(body.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
    outside = np.cumsum(flat == ord('"'), dtype=np.int32) & 1 == 0
    steps = _STEPS[flat]
    steps *= outside
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > MOST_DEPTH)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise invalid("a key occurs twice in one object", _shown(key), "invalid_json")
            seen.add(key)
    return result


def _place(value: Any, wanted: _Refused, place: str) -> str | None:
    """Where ``wanted`` is, as ``logit_bias.5`` or ``prompt[0]``; None when it is the body itself or nowhere."""
    if value is wanted:
        return place or None
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, list):
        children = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        children = ((f"{place}.{_shown(key)}" if place else _shown(key), item) for key, item in value.items())
    return next((found for here, item in children if (found := _place(item, wanted, here)) is not None), None)


def _check_scalars(value: Any, place: str) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise invalid("a text has a lone surrogate, which is not a character", place or None) from None
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_scalars(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_scalars(key, place)
            _check_scalars(item, f"{place}.{_shown(key)}" if place else _shown(key))


def _shown(key: str) -> str:
    return key if len(key) <= 64 and key.isprintable() else ascii(key[:61]) + "..."
