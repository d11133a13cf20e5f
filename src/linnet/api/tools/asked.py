# SPDX-License-Identifier: Apache-2.0
"""What is asked for with tools, in the spellings of OpenAI and vLLM, for ``LLM`` and the server alike."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools.choosing import ToolUse
from linnet.api.tools.interface import NO_PARAMETERS, Tool
from linnet.engine import ParameterError

MOST_TOOLS = 128
UNSUPPORTED = "unsupported_parameter"
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
"""What a function may be called: what no form of calls could take for a mark of its own."""
CHOICES = "none, auto, required, a function's name as an object, or allowed_tools"


class ToolsError(ParameterError):
    """What cannot be, in which parameter; ``code``: of the API's."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(param, message)
        self.code = code


def tool_use(tools: Any, choice: Any, parallel: bool | None) -> ToolUse | None:
    """What a request offers; None: no call may come. Raises ToolsError."""
    named = _tools(tools)
    mode, allowed = _choice(choice, bool(named))
    if not named:
        if mode in ("none", "auto"):
            return None
        raise ToolsError("tool_choice is accepted only with tools", "tool_choice")
    for name in allowed or ():
        if name not in named:
            raise ToolsError(f"tool_choice names {name!r}, which is none of the tools", "tool_choice")
    if mode == "none":
        return None
    callable_ones = tuple(tool for name, tool in named.items() if allowed is None or name in allowed)
    return ToolUse(
        tools=callable_ones,
        shown=tuple(tools),
        choice="required" if mode == "required" else "auto",
        many=parallel is not False and not _named(choice),
    )


def _tools(tools: Any) -> dict[str, Tool]:
    if tools is None:
        return {}
    if not isinstance(tools, list | tuple):
        raise ToolsError("tools must be a list of objects", "tools", "invalid_type")
    if len(tools) > MOST_TOOLS:
        raise ToolsError(f"tools has {len(tools)} entries; accepted are at most {MOST_TOOLS}", "tools")
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        one = _tool(tool, f"tools[{index}]")
        if one.name in found:
            raise ToolsError(
                f"tools[{index}].function.name is {one.name!r} a second time", f"tools[{index}].function.name"
            )
        found[one.name] = one
    return found


def _tool(tool: Any, place: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise ToolsError(f"{place} must be an object", place, "invalid_type")
    if tool.get("type") != "function":
        raise ToolsError(f"{place}.type is not supported; accepted is function", f"{place}.type", UNSUPPORTED)
    function = tool.get("function")
    here = f"{place}.function"
    if not isinstance(function, Mapping):
        raise ToolsError(f"{here} must be an object", here, "invalid_type")
    name = function_name(function.get("name"), f"{here}.name")
    described, schema, strict = (function.get(key) for key in ("description", "parameters", "strict"))
    if described is not None and not isinstance(described, str):
        raise ToolsError(f"{here}.description must be a text", f"{here}.description", "invalid_type")
    if schema is not None and not isinstance(schema, Mapping):
        raise ToolsError(f"{here}.parameters must be a JSON Schema, an object", f"{here}.parameters", "invalid_type")
    if schema and schema.get("type", "object") != "object":
        raise ToolsError(f"{here}.parameters.type must be object", f"{here}.parameters.type")
    if strict not in (None, True, False):
        raise ToolsError(f"{here}.strict must be true or false", f"{here}.strict", "invalid_type")
    return Tool(name, schema or NO_PARAMETERS, bool(strict))


def function_name(name: Any, place: str) -> str:
    """A name that a function may have. Raises ToolsError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ToolsError(f"{place} must be 1 to 128 of the characters A-Z a-z 0-9 _ . : / -", place)
    return name


def _named(choice: Any) -> bool:
    return isinstance(choice, Mapping) and choice.get("type") == "function"


def _choice(choice: Any, any_tools: bool) -> tuple[str, tuple[str, ...] | None]:
    """none, auto or required, and the names that may be called; None: all."""
    if choice is None:
        return ("auto" if any_tools else "none"), None
    if choice in ("none", "auto", "required"):
        return choice, None
    if _named(choice):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        return "required", (function_name(name, "tool_choice.function.name"),)
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools", choice))
    raise ToolsError(f"tool_choice must be {CHOICES}", "tool_choice")


def _allowed(allowed: Any) -> tuple[str, tuple[str, ...]]:
    place = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping) or allowed.get("mode") not in ("auto", "required"):
        raise ToolsError(f"{place} must be an object whose mode is auto or required", place)
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, Mapping) for tool in tools):
        raise ToolsError(f"{place}.tools must be a list of functions, one at least", f"{place}.tools")
    functions = [tool.get("function", tool) for tool in tools]
    names = [function.get("name") if isinstance(function, Mapping) else None for function in functions]
    return allowed["mode"], tuple(function_name(name, f"{place}.tools") for name in names)


def linked(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The messages of a conversation, each result with the name of the function that gave it.

    Raises ToolsError for a result of no call before it; one that names no call is taken as it is.
    """
    names: dict[str, str] = {}
    whole: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            if "id" in call and "name" in call.get("function", {}):
                names[call["id"]] = call["function"]["name"]
        identity = message.get("tool_call_id")
        if message.get("role") == "tool" and identity is not None:
            if identity not in names:
                place = f"messages[{index}].tool_call_id"
                raise ToolsError(f"{place} names no call of the messages before it", place)
            message = {"name": names[identity], **message}
        whole.append(message)
    return tuple(whole)
