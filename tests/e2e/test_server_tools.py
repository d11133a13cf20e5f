# SPDX-License-Identifier: Apache-2.0
"""Tools and thoughts over HTTP with the official client: forced, free, streamed, sent back; a stream says what an
answer says."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import NAME, Running
from speaking import MESSAGES, say, speaking
from tool_templates import BEGUN, PLAIN, TAGGED_OBJECTS, THINKING

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS: Any = [WEATHER, NOW]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Running(speaking(TAGGED_OBJECTS)) as one:
        yield one
        one.wait_settled()


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    running.llm.executable.script = ()
    with running.openai() as one:
        yield one


def joined(chunks: Any) -> dict[str, Any]:
    """The message that a stream comes to, by the rules of the API."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": None}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        message["content"] += choice.delta.content or ""
        message["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or ():
            if call.function.name is not None:
                assert call.index == len(message["tool_calls"])
                assert call.id is not None
                assert call.type == "function"
                message["tool_calls"].append([call.function.name, ""])
            message["tool_calls"][call.index][1] += call.function.arguments or ""
        message["finish_reason"] = choice.finish_reason or message["finish_reason"]
    return message


def whole(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    return {
        "content": choice.message.content or "",
        "reasoning_content": getattr(choice.message, "reasoning_content", None) or "",
        "tool_calls": [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()],
        "finish_reason": choice.finish_reason,
    }


def both(client: openai.OpenAI, given: dict[str, Any]) -> dict[str, Any]:
    """What is answered, streamed or not."""
    found = whole(client.chat.completions.create(**given))
    assert joined(client.chat.completions.create(**given, stream=True)) == found
    return found


NAMED = {"type": "function", "function": {"name": "get_weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}}


@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED], ids=str)
def test_a_call_that_must_come_comes(client: openai.OpenAI, choice: Any) -> None:
    """Of a model that says nothing sensible by itself."""
    for seed in range(2):
        given = {"model": NAME, "messages": MESSAGES, "max_tokens": 600, "tools": TOOLS, "tool_choice": choice,
                 "seed": seed, "parallel_tool_calls": False}  # fmt: skip
        found = both(client, given)
        assert found["finish_reason"] == "tool_calls"
        assert found["content"] == ""
        ((name, arguments),) = found["tool_calls"]
        if name == "get_weather":
            assert json.loads(arguments)["city"] in ("Bern", "Rome")
        else:
            assert choice == "required"
            assert json.loads(arguments) == {}


def test_a_free_answer_calls_or_speaks(running: Running, client: openai.OpenAI) -> None:
    found = both(client, say(running, f"Well.\n{CALLS}", tools=TOOLS))
    assert found["content"] == "Well."
    assert found["tool_calls"] == [["get_weather", '{"city": "Bern"}'], ["now", "{}"]]
    assert found["finish_reason"] == "tool_calls"
    spoken = both(client, say(running, "It is sunny. ", tools=TOOLS))
    assert spoken == {"content": "It is sunny. ", "reasoning_content": "", "tool_calls": [], "finish_reason": "stop"}
    cut = both(client, {**say(running, CALLS, tools=TOOLS), "max_tokens": 50})
    assert cut["finish_reason"] == "length"
    assert cut["tool_calls"][0][0] == "get_weather"
    assert '{"city": "Bern"}'.startswith(cut["tool_calls"][0][1])


def test_the_grammar_holds_a_free_answer_from_its_call_on(running: Running, client: openai.OpenAI) -> None:
    wrong = CALLS.replace('"Bern"', '"Oslo"')
    found = both(client, {**say(running, f"Well.\n{wrong}", tools=TOOLS), "max_tokens": 300})
    assert found["content"] == "Well."
    assert json.loads(found["tool_calls"][0][1])["city"] in ("Bern", "Rome")


def test_none_calls_nothing(running: Running, client: openai.OpenAI) -> None:
    found = both(client, {**say(running, CALLS), "tools": TOOLS, "tool_choice": "none"})
    assert found["tool_calls"] == []
    assert found["content"] == CALLS
    assert found["finish_reason"] == "stop"


def test_a_form_of_the_answer_or_a_call(running: Running, client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}}
    assert both(client, say(running, '"no"', tools=TOOLS, response_format=form))["content"] == '"no"'
    assert len(both(client, say(running, CALLS, tools=TOOLS, response_format=form))["tool_calls"]) == 2
    with pytest.raises(openai.BadRequestError, match="an answer has one form"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, tools=TOOLS,
                                       extra_body={"guided_grammar": 'start: "a"'})  # fmt: skip


def test_what_was_received_can_be_sent_back(running: Running, client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**say(running, CALLS, tools=TOOLS)).choices[0].message
    assert first.content is None
    calls: Any = first.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in calls]
    for returned in (first.model_dump(), first.model_dump(exclude_none=True), first):
        turns: Any = [*MESSAGES, returned, *results]
        running.llm.executable.script = ()
        answer = client.chat.completions.create(model=NAME, messages=turns, tools=TOOLS, max_tokens=4, temperature=0)
        assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls")
        plain = [turn if isinstance(turn, dict) else turn.model_dump() for turn in turns]
        count = running.http.post("/tokenize", json={"model": NAME, "messages": plain, "tools": TOOLS}).json()["count"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == count


def test_a_session_holds_the_calls(running: Running, client: openai.OpenAI) -> None:
    given = say(running, CALLS, tools=TOOLS)
    first = client.chat.completions.create(**given, extra_body={"session": "s"}).choices[0].message
    stored = running.http.get("/v1/sessions/s").json()["content"]
    calls: Any = first.tool_calls
    assert [call["id"] for call in stored[-1]["tool_calls"]] == [call.id for call in calls]
    running.llm.executable.script = ()
    turn: Any = [{"role": "tool", "tool_call_id": calls[1].id, "content": "noon"}]
    answer = client.chat.completions.create(
        model=NAME, messages=turn, tools=TOOLS, max_tokens=4, extra_body={"session": "s"}
    )
    assert answer.choices[0].finish_reason is not None
    running.http.delete("/v1/sessions/s")


def test_responses(running: Running, client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **one["function"], "strict": False} for one in TOOLS]
    say(running, f"Well.\n{CALLS}", tools=[{"type": "function", "function": {**one["function"], "strict": False}}
                                           for one in TOOLS])  # fmt: skip
    given: Any = {"model": NAME, "input": MESSAGES, "tools": tools, "max_output_tokens": 400, "temperature": 0}
    answer = client.responses.create(**given)
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    calls: Any = answer.output[1:]
    assert [(call.name, call.arguments) for call in calls] == [("get_weather", '{"city": "Bern"}'), ("now", "{}")]
    events = list(client.responses.create(**given, stream=True))
    streamed: Any = events[-1].response  # type: ignore[union-attr]
    assert [item.type for item in streamed.output] == [item.type for item in answer.output]
    assert [one.arguments for one in streamed.output[1:]] == [call.arguments for call in calls]
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == "".join(call.arguments for call in calls)
    with client.responses.stream(**given) as stream:
        assert stream.get_final_response().output[1].name == "get_weather"  # type: ignore[union-attr]
    running.llm.executable.script = ()
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls]
    items = [*MESSAGES, *(item.model_dump() for item in answer.output), *results]
    assert client.responses.create(**{**given, "input": items, "max_output_tokens": 4}).output
    forced = client.responses.create(**{**given, "tool_choice": {"type": "function", "name": "now"}})
    assert [item.name for item in forced.output] == ["now"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "characters"),
        ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice", "must be none, auto, required"),
        ({"tool_choice": "required"}, "tool_choice", "only with tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": {
            "x": {"type": "stsring"}}}}}]}, "tools", "type has 'stsring'"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": {
            "x": {"type": "string", "pattern": "(a"}}}}}]}, "tools", "unclosed group"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {
            "type": "object", "properties": {"x": {"uniqueItems": True}}}}}]}, "tools", "uniqueItems is not supported"),
        ({"functions": [{"name": "a"}]}, "functions", "older form"),
        ({"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "c", "content": "x"}]},
         "messages[1].tool_call_id", "no call"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(running: Running, fields: dict[str, Any], param: str, said: str) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 4, **fields}
    for stream in (False, True):
        response = running.http.post("/v1/chat/completions", json={**body, "stream": stream})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert said in response.json()["error"]["message"]


def test_every_beam_of_a_search_is_a_call(client: openai.OpenAI) -> None:
    given: Any = {"tools": TOOLS, "tool_choice": "required", "n": 2, "extra_body": {"use_beam_search": True}}
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=200, **given)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls or ():
            assert isinstance(json.loads(call.function.arguments), dict)  # type: ignore[union-attr]


def test_a_schema_that_cannot_be_enforced_is_an_object(client: openai.OpenAI) -> None:
    """Unless it is strict: of a tool's schema more is in use than any grammar knows."""
    loose: Any = [{"type": "function", "function": {"name": "a", "parameters": {
        "type": "object", "properties": {"x": {"uniqueItems": True}}}}}]  # fmt: skip
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, tools=loose, tool_choice="required",
                                            max_tokens=40)  # fmt: skip
    calls: Any = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "a"
    assert calls[0].function.arguments.startswith("{")


@pytest.mark.parametrize("template", [THINKING, BEGUN], ids=["may think", "thinks"])
def test_thoughts_are_told_apart(template: str) -> None:
    opening = "" if template == BEGUN else "<think>\n"
    with Running(speaking(template)) as running, running.openai() as client:
        given = say(running, f"{opening}Hm.\n</think>\n\nYes.")
        found = both(client, given)
        assert (found["reasoning_content"], found["content"]) == ("Hm.", "Yes.")
        usages = [client.chat.completions.create(**given).usage, list(client.chat.completions.create(
            **given, stream=True, stream_options={"include_usage": True}))[-1].usage]  # fmt: skip
        assert usages[0] == usages[1]
        assert usages[0] is not None
        assert usages[0].completion_tokens_details is not None
        thought = len(running.llm.tokenizer.encode(f"{opening}Hm.\n</think>", add_special_tokens=False))
        assert usages[0].completion_tokens_details.reasoning_tokens == thought
        hidden = client.chat.completions.create(**given, extra_body={"include_reasoning": False})
        assert whole(hidden)["reasoning_content"] == ""
        assert whole(hidden)["content"] == "Yes."
        called = both(client, say(running, f"{opening}Hm.\n</think>\n\n{CALLS}", tools=TOOLS, tool_choice="required"))
        assert called["reasoning_content"] == "Hm."
        assert len(called["tool_calls"]) == 2
        given = say(running, f"{opening}Hm.\n</think>\n\nYes.")
        answered = client.chat.completions.create(**given).choices[0].message
        turns: Any = [*MESSAGES, answered.model_dump(), {"role": "user", "content": "And?"}]
        asked = running.http.post("/tokenize", json={"model": NAME, "messages": turns}).json()
        assert "Hm." in running.llm.tokenizer.decode(asked["tokens"])
        said = client.responses.create(model=NAME, input=MESSAGES, temperature=0, max_output_tokens=100)
        assert [item.type for item in said.output] == ["reasoning", "message"]
        *_, last = client.responses.create(
            model=NAME, input=MESSAGES, temperature=0, max_output_tokens=100, stream=True
        )
        streamed: Any = last
        assert [item.type for item in streamed.response.output] == ["reasoning", "message"]
        assert streamed.response.output[0].content == said.output[0].content  # type: ignore[union-attr]
        assert said.usage is not None
        assert said.usage.output_tokens_details.reasoning_tokens == thought
        items: Any = [*MESSAGES, *(item.model_dump() for item in said.output), {"role": "user", "content": "And?"}]
        assert client.responses.create(model=NAME, input=items, max_output_tokens=4).output


def test_a_template_that_knows_no_tools() -> None:
    with Running(speaking(PLAIN)) as running, running.openai() as client:
        given = say(running, f"Well.\n{CALLS}", tools=TOOLS)
        found = both(client, given)
        assert found["content"] == "Well."
        assert found["tool_calls"] == [["get_weather", '{"city": "Bern"}'], ["now", "{}"]]
        returned: Any = client.chat.completions.create(**given).choices[0].message
        turns: Any = [
            *MESSAGES,
            returned,
            {"role": "tool", "tool_call_id": returned.tool_calls[0].id, "content": "hot"},
        ]
        answer = both(client, say(running, "It is hot.", tools=TOOLS, messages=[
            one if isinstance(one, dict) else one.model_dump() for one in turns]))  # fmt: skip
        assert answer["content"] == "It is hot."
        text = running.llm.tokenizer.decode(running.http.post(
            "/tokenize", json={"model": NAME, "messages": [turns[0], returned.model_dump(), turns[2]], "tools": TOOLS}
        ).json()["tokens"])  # fmt: skip
        assert "<tool_response>\nhot\n</tool_response>" in text
        assert text.count('"name": "get_weather"') == 2


def test_parsers_can_be_named() -> None:
    with Running(speaking(THINKING), reasoning_parser="none", tool_parser="qwen3_coder") as running:
        with running.openai() as client:
            text = "<think>\nHm.\n</think>\n\nYes."
            assert both(client, say(running, text))["content"] == text
            call = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
            assert both(client, say(running, call, tools=TOOLS))["tool_calls"] == [["now", "{}"]]
