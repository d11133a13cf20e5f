# SPDX-License-Identifier: Apache-2.0
"""How a chat template shows calls of tools, and in which form it wants them: found out by rendering a call.

Templates differ in whether arguments are an object or its JSON text, in what stands as content beside calls, and in
how long a call's id may be; what they cannot take they refuse, print as Python, or leave out without a word.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from linnet.errors import ConfigError, LinnetError

Chat = list[dict[str, Any]]
Render = Callable[[Chat, list[dict[str, Any]] | None], str]

Arguments = Literal["object", "text"]
Content = Literal["absent", "none", "empty"]
_ARGUMENTS: tuple[Arguments, ...] = ("object", "text")
_CONTENTS: tuple[Content, ...] = ("absent", "none", "empty")

NAME, ARGUMENT, VALUE = "probe_function", "probe_argument", "probe value"
_USER, _RESULT, _SYSTEM = "probe question", "probe result", "probe system"
SHORT_ID, LONG_ID = "probe0000", "call_probe00000000000000000"
_SPOILT = re.compile(rf"'{ARGUMENT}'|\\+\"{ARGUMENT}|\\+\"{VALUE}")
"""Arguments printed as Python, or as JSON in JSON."""


@dataclass(frozen=True, slots=True)
class CallShape:
    """What one template does with tools.

    shown: how it writes a call of NAME with the argument ARGUMENT; None: it shows no calls.
    arguments, content: the form in which it shows calls. short_ids: ids of calls have nine letters and digits.
    tools, results, system: whether it shows what tools there are, what they gave, and system messages.
    """

    shown: str | None
    arguments: Arguments = "object"
    content: Content = "absent"
    short_ids: bool = False
    tools: bool = False
    results: bool = False
    system: bool = False

    def adapt(self, chat: Chat) -> None:
        """Put every call into the form that is shown, in place. Raises ConfigError for arguments that are no JSON."""
        if self.shown is None:
            return
        for place, message in enumerate(chat):
            if message.get("tool_calls"):
                message["tool_calls"] = [
                    self._call(call, f"messages[{place}].tool_calls[{index}]")
                    for index, call in enumerate(message["tool_calls"])
                ]
                if self.content != "absent" and not message.get("content"):
                    message["content"] = None if self.content == "none" else ""
            if self.short_ids and isinstance(message.get("tool_call_id"), str):
                message["tool_call_id"] = short_id(message["tool_call_id"])

    def _call(self, call: Any, place: str) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return call
        arguments = function.get("arguments")
        if self.arguments == "object" and isinstance(arguments, str):
            arguments = arguments_object(arguments, f"{place}.function.arguments")
        elif self.arguments == "text" and not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        changed = {**call, "function": {**function, "arguments": arguments}}
        if self.short_ids and isinstance(call.get("id"), str):
            changed["id"] = short_id(call["id"])
        return changed


def short_id(identity: str) -> str:
    """One of nine letters and digits, the same for the same id."""
    if re.fullmatch(r"[A-Za-z0-9]{9}", identity):
        return identity
    from hashlib import blake2b

    return blake2b(identity.encode("utf-8", "replace"), digest_size=5).hexdigest()[:9]


def find_shape(render: Render) -> CallShape:
    """Of a template, by probes. ``render``: of messages and tools, as they are; raises LinnetError where it refuses."""
    tools = NAME in (_rendered(render, [_user()], [_tool()]) or "")
    system = _SYSTEM in (_rendered(render, [{"role": "system", "content": _SYSTEM}, _user()], None) or "")
    for arguments, content in itertools.product(_ARGUMENTS, _CONTENTS):
        for turns in (3, 2):  # with what the call gave, and without
            chat = _chat(arguments, content, SHORT_ID)[:turns]
            text = _rendered(render, chat, None)
            shown = None if text is None else text.rpartition(_USER)[2]
            if shown is None or NAME not in shown or VALUE not in shown or _SPOILT.search(shown):
                continue
            long = _rendered(render, _chat(arguments, content, LONG_ID)[:turns], None)
            return CallShape(
                shown=shown,
                arguments=arguments,
                content=content,
                short_ids=long is None,
                tools=tools,
                results=_RESULT in shown,
                system=system,
            )
    return CallShape(shown=None, tools=tools, system=system)


def _rendered(render: Render, chat: Chat, tools: list[dict[str, Any]] | None) -> str | None:
    try:
        return render(chat, tools)
    except LinnetError:
        return None


def _user() -> dict[str, Any]:
    return {"role": "user", "content": _USER}


def _chat(arguments: str, content: str, identity: str) -> Chat:
    given: Any = {ARGUMENT: VALUE}
    function = {"name": NAME, "arguments": json.dumps(given) if arguments == "text" else given}
    said: dict[str, Any] = {"role": "assistant"}
    if content != "absent":
        said["content"] = None if content == "none" else ""
    said["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": identity, "name": NAME, "content": _RESULT}
    return [_user(), said, result]


def _tool() -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {ARGUMENT: {"type": "string", "description": "x"}},
        "required": [ARGUMENT],
    }
    return {"type": "function", "function": {"name": NAME, "description": "x", "parameters": schema}}


def arguments_object(text: str, place: str) -> dict[str, Any]:
    """A call's arguments, none where the text is blank. Raises ConfigError naming their ``place``."""
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{place} must be the JSON text of an object, nested not too deeply: the model is shown its members"
        )
    return found
