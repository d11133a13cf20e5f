# SPDX-License-Identifier: Apache-2.0
"""Tools, choices and calls as clients send them: every spelling, and one sentence for what cannot be."""

from typing import Any

import pytest

from linnet.serve.errors import ApiError
from linnet.serve.protocol import ChatRequest, read_request
from linnet.serve.protocol.chat import plain_messages
from linnet.serve.protocol.tools import linked, tool_use

A = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}, "strict": True}}
B = {"type": "function", "function": {"name": "b"}}
USER = {"role": "user", "content": "x"}
CALL = {"id": "c1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def messages(*given: dict[str, Any]) -> Any:
    request = read_request(ChatRequest, {"model": "m", "messages": list(given)})
    return linked(plain_messages(request.messages))


@pytest.mark.parametrize(
    ("choice", "names", "mode"),
    [
        (None, "ab", "auto"),
        ("auto", "ab", "auto"),
        ("required", "ab", "required"),
        ({"type": "function", "function": {"name": "b"}}, "b", "required"),
        ({"type": "function", "name": "b"}, "b", "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [B]}}, "b", "auto"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "a"}]}, "a", "required"),
    ],
    ids=str,
)
def test_every_choice(choice: Any, names: str, mode: str) -> None:
    use = tool_use([A, B], choice, None)
    assert use is not None
    assert ("".join(tool.name for tool in use.tools), use.choice) == (names, mode)
    assert use.shown == (A, B)
    assert use.many is (not (isinstance(choice, dict) and choice["type"] == "function"))
    one = tool_use([A, B], choice, False)
    assert one is not None
    assert not one.many


def test_none_and_nothing() -> None:
    assert tool_use([A], "none", True) is None
    for tools in (None, []):
        for choice in (None, "none", "auto"):
            assert tool_use(tools, choice, True) is None


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("x", None, "tools"),
        ([A] * 129, None, "tools"),
        ([5], None, "tools[0]"),
        ([{"type": "custom"}], None, "tools[0].type"),
        ([{"type": "function"}], None, "tools[0].function"),
        ([{"type": "function", "function": {}}], None, "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a", "parameters": 5}}], None, "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}], None,
         "tools[0].function.parameters.type"),
        ([{"type": "function", "function": {"name": "a", "strict": 1.5}}], None, "tools[0].function.strict"),
        ([A, A], None, "tools[1].function.name"),
        ([A], "sometimes", "tool_choice"),
        ([A], {"type": "function", "function": {"name": "b"}}, "tool_choice"),
        ([A], {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
         "tool_choice.allowed_tools.tools"),
        ([A], {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [A]}}, "tool_choice.allowed_tools"),
        (None, "required", "tool_choice"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_named(tools: Any, choice: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        tool_use(tools, choice, None)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param.split(".")[0].split("[")[0] in caught.value.message


def test_history_goes_through_as_it_was_returned() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "r"}]}
    returned = {**CALLED, "refusal": None, "reasoning_content": "hm", "function_call": None, "audio": None}
    found = messages(USER, returned, result, {"role": "assistant", "content": "done"})
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"}
    assert found[2]["name"] == "a"
    streamed = {**CALL, "index": 0}
    assert messages(USER, {**CALLED, "tool_calls": [streamed]})[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({**CALLED, "tool_calls": 5}, "messages[1].tool_calls"),
        ({**CALLED, "tool_calls": [5]}, "messages[1].tool_calls[0]"),
        ({**CALLED, "tool_calls": [{**CALL, "type": "custom"}]}, "messages[1].tool_calls[0].type"),
        ({**CALLED, "tool_calls": [{**CALL, "id": None}]}, "messages[1].tool_calls[0].id"),
        ({**CALLED, "tool_calls": [{**CALL, "function": {"name": ""}}]}, "messages[1].tool_calls[0].function.name"),
        ({**CALLED, "tool_calls": [{**CALL, "function": {"name": "a", "arguments": 5}}]},
         "messages[1].tool_calls[0].function.arguments"),
        ({**CALLED, "role": "user", "content": "x"}, "messages[1].tool_calls"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": "c1"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[1].tool_call_id"),
        ({"role": "function", "name": "a", "content": "x"}, "messages[1].role"),
        ({"role": "assistant", "content": None, "function_call": {"name": "a"}}, "messages[1].function_call"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_history_is_one_sentence(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        messages(USER, given)
    assert (caught.value.status, caught.value.param) == (400, param)
