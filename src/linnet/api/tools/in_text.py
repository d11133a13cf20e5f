# SPDX-License-Identifier: Apache-2.0
"""Tools for a template that does not know them: what there is, what was called and what came of it, as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools.interface import CallForm
from linnet.api.tools.objects import dumps
from linnet.text.call_form import CallShape, arguments_object

Message = Mapping[str, Any]

INTRODUCTION = """You may call functions. These there are, one a line, as JSON:
<tools>
{tools}
</tools>

To call one, write its name and its arguments like this, and nothing else after it:
{example}"""


def in_text(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: CallForm, shape: CallShape
) -> tuple[list[Message], Sequence[Mapping[str, Any]] | None]:
    """The messages with everything in them as text that the template does not show, and the tools that it does.

    Raises ConfigError for arguments that are no JSON.
    """
    chat = list(messages)
    if shape.shown is None:
        chat = [_called(message, form, f"messages[{place}]") for place, message in enumerate(chat)]
    if not shape.results:
        chat = _joined([_answered(message) for message in chat])
    if not tools:
        return chat, None
    if shape.tools:
        return chat, tools
    example = form.written("function_name", {"argument": "value"})
    text = INTRODUCTION.format(tools="\n".join(map(dumps, tools)), example=example)
    return _introduced(chat, text, "system" if shape.system else "user"), None


def _called(message: Message, form: CallForm, place: str) -> Message:
    """Calls as the assistant's text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = []
    for index, call in enumerate(calls):
        arguments = call["function"].get("arguments") or {}
        if isinstance(arguments, str):
            arguments = arguments_object(arguments, f"{place}.tool_calls[{index}].function.arguments")
        written.append(form.written(call["function"]["name"], arguments))
    rest = {name: value for name, value in message.items() if name not in ("tool_calls", "content")}
    return {**rest, "content": "\n".join(part for part in (_text(message.get("content")), *written) if part)}


def _answered(message: Message) -> Message:
    """A result as something that the user says."""
    if message.get("role") != "tool":
        return message
    return {
        "role": "user",
        "content": f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>",
        "tool": True,
    }


def _joined(chat: Sequence[Message]) -> list[Message]:
    """Results that follow each other, and the user's words after them, as one message: users do not speak twice."""
    joined: list[Message] = []
    for message in chat:
        last = joined[-1] if joined else {}
        if last.get("tool") and message.get("role") == "user":
            text = f"{last['content']}\n{_text(message.get('content'))}"
            joined[-1] = {"role": "user", "content": text, "tool": bool(message.get("tool"))}
        else:
            joined.append(message)
    return [{name: value for name, value in message.items() if name != "tool"} for message in joined]


def _introduced(chat: Sequence[Message], text: str, role: str) -> list[Message]:
    """With the text in the first message if that is of the role, else in one of its own before it."""
    first = chat[0] if chat else {}
    if first.get("role") != role:
        return [{"role": role, "content": text}, *chat]
    own: Any = first.get("content")
    listed = isinstance(own, (list, tuple))
    added: Any = [{"type": "text", "text": text}] if listed else text
    together = [own, added] if role == "system" else [added, own]
    content = [part for parts in together for part in parts] if listed else "\n\n".join(filter(None, together))
    return [{**first, "content": content}, *chat[1:]]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else ()
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)
