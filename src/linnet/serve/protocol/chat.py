# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from linnet.serve.errors import invalid, unsupported
from linnet.serve.protocol.common import GenerationRequest, Integer
from linnet.serve.protocol.neutral import NEUTRAL
from linnet.serve.protocol.record import Record
from linnet.serve.protocol.tools import plain_calls

OLDER = "it is the older form; use tools, tool_choice and tool_calls"


class Message(Record):
    """One message. ``developer`` is OpenAI's newer name of ``system`` and is treated as such."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None
    name: str | None = Field(default=None, max_length=256)
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    cache_control: Any = None
    audio: None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    annotations: Any = None


class ChatRequest(GenerationRequest):
    """``max_completion_tokens`` is the newer name of ``max_tokens`` and wins."""

    REFUSED: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        **NEUTRAL,
        "functions": (([],), OLDER),
        "function_call": (("none", "auto"), OLDER),
        "modalities": ((["text"],), "only text is generated"),
        "audio": ((), "only text is generated"),
        "prediction": ((), "there is no speculative decoding yet"),
        "verbosity": ((), "ask for it in the messages"),
        "web_search_options": ((), "this server never opens a connection"),
        "chat_template": ((), "templates come from the checkpoint only"),
        "best_of": ((1,), "choose among n answers yourself, with logprobs"),
        "echo": ((False,), "use /v1/completions"),
    }

    messages: list[Message] = Field(min_length=1)
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    reasoning_effort: str | None = Field(default=None, max_length=64)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """What a chat template gets. Raises ApiError 400 naming the message that cannot be used."""
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Message, place: str) -> dict[str, Any]:
    if message.role == "function" or message.function_call is not None:
        name = "role: function" if message.role == "function" else "function_call"
        raise unsupported(f"{place}.{name.split(':')[0]}", f"{place}.{name} is not supported: {OLDER}")
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _said(message, f"{place}.content"),
    }
    if message.tool_calls not in (None, []):
        if message.role != "assistant":
            raise invalid(f"{place}.tool_calls is accepted of the assistant only", f"{place}.tool_calls")
        plain["tool_calls"] = plain_calls(message.tool_calls, f"{place}.tool_calls")
    if message.role == "tool":
        if not isinstance(message.tool_call_id, str):
            raise invalid(f"{place}.tool_call_id must be the id of a call", f"{place}.tool_call_id")
        plain["tool_call_id"] = message.tool_call_id
    elif message.tool_call_id is not None:
        raise invalid(f"{place}.tool_call_id is accepted of the role tool only", f"{place}.tool_call_id")
    if message.name is not None:
        plain["name"] = message.name
    reasoning = message.reasoning_content or message.reasoning
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    return plain


def _said(message: Message, place: str) -> str | list[dict[str, str]]:
    """What the assistant said may be nothing, or a refusal: clients send back what they received."""
    if message.role == "assistant" and message.content in (None, []):
        return message.refusal or ""
    if message.role == "tool" and message.content in (None, []):
        return ""
    return _content(message.content, place)


def _content(content: Any, place: str) -> str | list[dict[str, str]]:
    """A text, or text parts: the template gets the form that it shows."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(f"{place} must be a text or a list of text parts", place, "invalid_type")
    parts = []
    for index, part in enumerate(content):
        here = f"{place}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise invalid(f"{here} must be an object with a type", here, "invalid_type")
        if part["type"] not in ("text", "input_text"):
            raise unsupported(f"{here}.type", f"{here}.type: only parts of type text are supported")
        if set(part) - {"type", "text", "cache_control"} or not isinstance(part.get("text"), str):
            raise invalid(f"{here} must have a text and nothing else", f"{here}.text", "invalid_type")
        parts.append({"type": "text", "text": part["text"]})
    return parts
