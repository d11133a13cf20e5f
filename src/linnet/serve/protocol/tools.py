# SPDX-License-Identifier: Apache-2.0
"""Tools in requests and calls in messages: read by the API's room, refused as the server refuses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from linnet.api.tools import ToolsError, ToolUse, asked
from linnet.serve.errors import invalid, unsupported


@contextmanager
def _refusing() -> Iterator[None]:
    """A ToolsError becomes an ApiError 400."""
    try:
        yield
    except ToolsError as error:
        raise invalid(str(error), error.param, error.code) from None


def tool_use(tools: Any, choice: Any, parallel: bool | None) -> ToolUse | None:
    """What a request offers; None: no call may come. Raises ApiError 400."""
    with _refusing():
        return asked.tool_use(tools, choice, parallel)


def linked(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Messages whose results name their functions. Raises ApiError 400 for a result of no call before it."""
    with _refusing():
        return asked.linked(messages)


def plain_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """An assistant's calls as a chat template gets them. Raises ApiError 400."""
    if not isinstance(calls, list):
        raise invalid(f"{place} must be a list", place, "invalid_type")
    return [_plain_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _plain_call(call: Any, place: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise invalid(f"{place} must be an object with a function", place, "invalid_type")
    if call.get("type", "function") != "function":
        raise unsupported(f"{place}.type", f"{place}.type is not supported; accepted is function")
    with _refusing():
        name = asked.function_name(call["function"].get("name"), f"{place}.function.name")
    arguments, identity = call["function"].get("arguments"), call.get("id")
    if arguments is None:
        arguments = ""
    if not isinstance(arguments, (str, Mapping)):
        raise invalid(f"{place}.function.arguments must be a text", f"{place}.function.arguments", "invalid_type")
    if not isinstance(identity, str) or not 1 <= len(identity) <= 256:
        raise invalid(f"{place}.id must be a text of 1 to 256 characters", f"{place}.id")
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
