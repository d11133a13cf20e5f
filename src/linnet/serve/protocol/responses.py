# SPDX-License-Identifier: Apache-2.0
"""POST /v1/responses: what the official client sends, as the chat request that it amounts to."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from linnet.serve.errors import invalid, unsupported
from linnet.serve.protocol.common import Integer
from linnet.serve.protocol.record import Record

STORED = "nothing is stored here; send the whole conversation, or use a session of /v1/chat/completions"
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Parameters of the chat request -> those of this one."""


class ResponsesRequest(Record):
    """``input``: a text or a list of items, those of earlier answers included."""

    REFUSED: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "previous_response_id": ((), STORED),
        "conversation": ((), STORED),
        "background": ((False,), STORED),
        "prompt": ((), "templates of prompts are not kept here"),
        "truncation": (("disabled",), "what does not fit is refused; shorten the input"),
        "max_tool_calls": ((), "no tool is run here"),
        "context_management": (([],), "the input is used as it is"),
    }

    model: str = Field(max_length=4096)
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Integer | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    seed: Integer | None = None

    # Accepted and without effect.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)


def as_chat(request: ResponsesRequest) -> dict[str, Any]:
    """The body of the chat request. Raises ApiError 400 naming what this one calls it."""
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stream": request.stream,
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": (request.reasoning or {}).get("effort"),
    }
    if request.logprobs:
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    form = (request.text or {}).get("format")
    if form is not None:
        chat["response_format"] = _response_format(form)
    if request.tools:
        chat["tools"] = [_tool(tool, index) for index, tool in enumerate(request.tools)]
        chat["tool_choice"] = _tool_choice(request.tool_choice)
    return {name: value for name, value in chat.items() if value is not None}


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    thoughts: str | None = None
    for index, item in enumerate(request.input):
        place = f"input[{index}]"
        if item.get("type") == "reasoning":
            thoughts = _thoughts(item, place)
            continue
        message = _message(item, place)
        last = messages[-1] if messages else {}
        if message.get("tool_calls") and last.get("role") == "assistant":  # of one turn
            last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
            continue
        if thoughts and message.get("role") == "assistant":
            message["reasoning_content"] = thoughts
        thoughts = None
        messages.append(message)
    return messages


def _thoughts(item: Mapping[str, Any], place: str) -> str | None:
    """The text of a reasoning item: what was returned before."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise invalid(f"{place}.content must be a list of objects", f"{place}.content", "invalid_type")
    texts = [part.get("text") for part in parts]
    return "\n".join(text for text in texts if isinstance(text, str)) or None


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The chat message of one item."""
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": _parts(item.get("content"), f"{place}.content")}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        content = _parts(item.get("output"), f"{place}.output")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    raise unsupported(f"{place}.type", f"{place}.type is not supported: accepted are messages and function calls")


def _parts(content: Any, place: str) -> Any:
    if isinstance(content, list):
        return [_part(part, f"{place}[{at}]") for at, part in enumerate(content)]
    return content


def _part(part: Any, place: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise invalid(f"{place} must be an object with a type", place, "invalid_type")
    if part.get("type") in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    raise unsupported(f"{place}.type", f"{place}.type: only parts with text are supported")


def _response_format(form: Any) -> Any:
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        inner = {name: form.get(name) for name in ("name", "schema", "strict", "description") if name in form}
        return {"type": "json_schema", "json_schema": inner}
    return form


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        place = f"tools[{index}].type"
        raise unsupported(place, f"{place} is not supported; accepted is function")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice
