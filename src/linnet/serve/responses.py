# SPDX-License-Identifier: Apache-2.0
"""The JSON of /v1/responses: the answers of chat in OpenAI's newer form, whole or as events.

The request is translated to a chat request, its answer back; so both routes say the same of the same input.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from linnet.api import Piece, Sample
from linnet.api.sessions import Visit
from linnet.serve.answers import encode
from linnet.serve.errors import ApiError
from linnet.serve.preparing import ModelFacts, Prepared, Preparer
from linnet.serve.protocol.responses import NAMES, ResponsesRequest, as_chat
from linnet.serve.shapes import ChatShape

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesExchange:
    """One request: ``prepare`` is a Preparer's method of it, ``shape`` makes its Shape."""

    def __init__(self, preparer: Preparer) -> None:
        self._preparer = preparer
        self._request: ResponsesRequest | None = None

    def prepare(self, body: bytes, visit: Visit) -> Prepared:
        """As ``Preparer.chat``, with the names of this request's parameters in errors."""
        self._request = self._preparer.read_turns(ResponsesRequest, body, "input")
        try:
            return self._preparer.chat(encode(as_chat(self._request)), visit)
        except ApiError as error:
            raise _renamed(error) from None

    def shape(self, prepared: Prepared, facts: ModelFacts, request_id: str) -> "ResponsesShape":
        """Of the request that was prepared."""
        assert self._request is not None
        return ResponsesShape(self._request, ChatShape(prepared, facts, request_id), request_id)


def _renamed(error: ApiError) -> ApiError:
    for theirs, ours in NAMES.items():
        if error.param is not None and (error.param == theirs or error.param.startswith((f"{theirs}[", f"{theirs}."))):
            error.message = error.message.replace(theirs, ours)
            error.param = ours + error.param[len(theirs) :]
            break
    if error.param is not None and error.param.startswith("tool"):  # a tool's fields stand in itself here
        error.message = error.message.replace(".function.", ".")
        error.param = error.param.replace(".function.", ".")
    return error


class _Item:
    """One item of the output while it is streamed: thoughts, a message's text or a call's arguments."""

    def __init__(self, index: int, item: dict[str, Any]) -> None:
        self.index, self.item, self.text = index, item, ""
        self.logprobs: list[Any] = []


class ResponsesShape:
    """A Shape."""

    held = False
    says_done = False

    def __init__(self, request: ResponsesRequest, chat: ChatShape, request_id: str) -> None:
        self._request, self._chat, self._id = request, chat, request_id
        self._created = int(time.time())
        self._sequence = -1
        self._message: _Item | None = None
        self._thoughts: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._begun = False

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        answer = self._chat.whole(samples)
        choice = answer["choices"][0]
        message = choice["message"]
        output: list[dict[str, Any]] = []
        if message.get("reasoning_content"):
            content = [_thought_part(message["reasoning_content"])]
            output.append({**self._thoughts_item(0), "status": "completed", "content": content})
        if message.get("content") or not message.get("tool_calls"):
            said = _text_part(message.get("content") or "", (choice.get("logprobs") or {}).get("content") or [])
            output.append({**self._message_item(len(output)), "status": "completed", "content": [said]})
        for call in message.get("tool_calls") or ():
            output.append(self._call_item(call, len(output)) | {"status": "completed"})
        return self._response(output, choice["finish_reason"], answer["usage"])

    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]:
        """Events, in the order of OpenAI's."""
        if not self._begun:
            self._begun = True
            yield self._event("response.created", response=self._response([], None, None))
            yield self._event("response.in_progress", response=self._response([], None, None))
        for chunk in self._chat.chunks(sample, piece):
            choice = chunk["choices"][0]
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._more_thoughts(delta["reasoning_content"])
            if delta.get("content"):
                yield from self._more_text(delta["content"], (choice.get("logprobs") or {}).get("content") or [])
            for call in delta.get("tool_calls") or ():
                yield from self._more_call(call)
            if choice["finish_reason"] is not None:
                yield from self._end(choice["finish_reason"], self._chat.usage_chunk([sample])["usage"])

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """None: the last event has the usage."""
        return {}

    @property
    def _items(self) -> list[_Item]:
        """In the order in which they began."""
        begun = (self._thoughts, self._message, *self._calls.values())
        return sorted((item for item in begun if item is not None), key=lambda item: item.index)

    def _more_thoughts(self, text: str) -> Iterator[dict[str, Any]]:
        if self._thoughts is None:
            index = len(self._items)
            self._thoughts = _Item(index, self._thoughts_item(index))
            yield self._added(self._thoughts)
        self._thoughts.text += text
        yield self._of_part(self._thoughts, "response.reasoning_text.delta", delta=text)

    def _more_text(self, text: str, logprobs: list[Any]) -> Iterator[dict[str, Any]]:
        if self._message is None:
            index = len(self._items)
            self._message = _Item(index, self._message_item(index))
            yield self._added(self._message)
            yield self._of_part(self._message, "response.content_part.added", part=_text_part("", []))
        self._message.text += text
        self._message.logprobs += logprobs
        yield self._of_part(self._message, "response.output_text.delta", delta=text, logprobs=logprobs)

    def _more_call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        at = call.get("index", 0)
        if at not in self._calls:
            index = len(self._items)
            self._calls[at] = _Item(index, self._call_item(call, index) | {"arguments": ""})
            yield self._added(self._calls[at])
        one = self._calls[at]
        arguments = (call.get("function") or {}).get("arguments") or ""
        if arguments:
            one.text += arguments
            yield self._of(one, "response.function_call_arguments.delta", delta=arguments)

    def _end(self, reason: str, usage: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._message is None and not self._calls:
            yield from self._more_text("", [])
        if (thoughts := self._thoughts) is not None:
            yield self._of_part(thoughts, "response.reasoning_text.done", text=thoughts.text)
            yield self._done(thoughts, content=[_thought_part(thoughts.text)])
        if (message := self._message) is not None:
            part = _text_part(message.text, message.logprobs)
            yield self._of_part(message, "response.output_text.done", text=message.text, logprobs=message.logprobs)
            yield self._of_part(message, "response.content_part.done", part=part)
            yield self._done(message, content=[part])
        for call in self._calls.values():
            name = call.item["name"]
            yield self._of(call, "response.function_call_arguments.done", arguments=call.text, name=name)
            yield self._done(call, arguments=call.text)
        response = self._response([item.item for item in self._items], reason, usage)
        yield self._event(f"response.{response['status']}", response=response)

    def _added(self, item: _Item) -> dict[str, Any]:
        return self._event("response.output_item.added", output_index=item.index, item=item.item)

    def _done(self, item: _Item, **fields: Any) -> dict[str, Any]:
        """It is complete, with these fields."""
        item.item = {**item.item, **fields, "status": "completed"}
        return self._event("response.output_item.done", output_index=item.index, item=item.item)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence, **fields}

    def _of(self, item: _Item, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=item.item["id"], output_index=item.index, **fields)

    def _of_part(self, item: _Item, kind: str, **fields: Any) -> dict[str, Any]:
        """Of its only part."""
        return self._of(item, kind, content_index=0, **fields)

    def _message_item(self, index: int) -> dict[str, Any]:
        identity = f"msg_{self._id}-{index}"
        return {"id": identity, "type": "message", "role": "assistant", "status": "in_progress", "content": []}

    def _thoughts_item(self, index: int) -> dict[str, Any]:
        identity = f"rs_{self._id}-{index}"
        return {"id": identity, "type": "reasoning", "summary": [], "status": "in_progress", "content": []}

    def _call_item(self, call: dict[str, Any], index: int) -> dict[str, Any]:
        function = call.get("function") or {}
        return {
            "id": f"fc_{self._id}-{index}",
            "type": "function_call",
            "call_id": call.get("id"),
            "name": function.get("name"),
            "arguments": function.get("arguments") or "",
            "status": "in_progress",
        }

    def _response(self, output: list[Any], reason: str | None, usage: dict[str, Any] | None) -> dict[str, Any]:
        request, short = self._request, INCOMPLETE.get(reason or "")
        status = "in_progress" if reason is None else "incomplete" if short else "completed"
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": short} if short else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (request.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": request.user,
        }


def _text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _thought_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    thought = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
