# SPDX-License-Identifier: Apache-2.0
"""``LLM.chat`` with tools and thoughts: what it returns is what the server answers, and can be sent back."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import NAME, Running
from tiny_llama import write_tiny_llama
from tool_templates import BEGUN, TAGGED_OBJECTS, THINKING

from linnet.api import LLM, SamplingParams, StructuredOutput
from linnet.api.output import Completion
from linnet.api.tools import ModelForms
from linnet.engine import GrammarError, ParameterError
from linnet.text import ChatTemplates

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS: list[dict[str, Any]] = [WEATHER, NOW]
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=150)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    with LLM(directory, num_blocks=256, threads=1) as llm:
        yield llm


@pytest.fixture
def llm(opened: LLM) -> LLM:
    return under(opened, TAGGED_OBJECTS)


def under(llm: LLM, template: str) -> LLM:
    """The model with another chat template."""
    llm.tokenizer.templates = ChatTemplates({"default": template})
    llm.forms = ModelForms(llm.tokenizer)
    return llm


def only(outputs: Any) -> Completion:
    ((completion,),) = (output.outputs for output in outputs)
    return completion


def without_ids(message: Any) -> Any:
    calls = [{**call, "id": ""} for call in message.get("tool_calls", ())]
    return {**message, **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize("template", [TAGGED_OBJECTS, THINKING, BEGUN], ids=["calls", "thoughts", "begun"])
def test_it_is_what_the_server_answers(opened: LLM, template: str) -> None:
    llm = under(opened, template)
    asked: list[dict[str, Any]] = [
        {},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": TOOLS, "tool_choice": "none"},
    ]
    mine = [only(llm.chat(QUESTION, PARAMS, **one)) for one in asked]
    with LLM(llm.path, num_blocks=256, threads=1) as other:
        with Running(under(other, template)) as server:
            for one, completion in zip(asked, mine, strict=True):
                body = {"model": NAME, "messages": QUESTION, "temperature": 1.0, "seed": 3, "max_tokens": 150, **one}
                theirs = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
                theirs = {name: value for name, value in theirs.items() if value and name != "refusal"}
                found = {name: value for name, value in (completion.message or {}).items() if value}
                assert without_ids(found) == without_ids(theirs), one
    free, _, forced, named, _ = (one.message or {} for one in mine)
    if template == TAGGED_OBJECTS:  # without thoughts, which this model does not end
        assert forced["tool_calls"][0]["function"]["name"] in ("get_weather", "now")
        assert json.loads(named["tool_calls"][0]["function"]["arguments"])["city"] in ("Bern", "Rome")
    assert ("reasoning_content" in free) is (template == BEGUN)


def test_what_it_returns_is_sent_back_with_the_results(llm: LLM) -> None:
    answer = only(llm.chat(QUESTION, PARAMS, tools=TOOLS, tool_choice="required", parallel_tool_calls=False))
    assert answer.message is not None
    (call,) = answer.message["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "warm"}
    (again,) = llm.chat([*QUESTION, answer.message, result], PARAMS, tools=TOOLS)
    assert again.prompt is not None
    assert f'"name": "{call["function"]["name"]}"' in again.prompt
    assert "<tool_response>\nwarm" in again.prompt
    with pytest.raises(ParameterError, match=r"messages\[2\]\.tool_call_id names no call"):
        llm.chat([*QUESTION, answer.message, {**result, "tool_call_id": "call_of_nobody"}], PARAMS, tools=TOOLS)
    llm.chat([*QUESTION, {"role": "tool", "name": "now", "content": "noon"}], PARAMS, tools=TOOLS)


def test_a_session_keeps_its_calls(llm: LLM) -> None:
    answer = only(llm.chat(QUESTION, PARAMS, tools=TOOLS, tool_choice="required", session="tools"))
    kept = llm.sessions.get(b"", "tools").content[-1]
    assert kept == answer.message


def test_conversations_of_one_call_have_grammars_of_their_own(opened: LLM) -> None:
    """Under a template whose prompts end within thoughts, or behind them, by what the conversation is."""
    end = "{% if messages | length > 1 %}</think>\n{% endif %}{% endif %}"
    llm = under(opened, BEGUN.replace("<think>\n{% endif %}", f"<think>\n{end}"))
    both = llm.chat([QUESTION, [*QUESTION, *QUESTION]], PARAMS, tools=TOOLS, tool_choice="required")
    alone = [llm.chat(one, PARAMS, tools=TOOLS, tool_choice="required")[0] for one in (QUESTION, QUESTION * 2)]
    assert [str(one.prompt).rstrip().endswith("</think>") for one in both] == [False, True]
    assert [one.outputs[0].token_ids for one in both] == [one.outputs[0].token_ids for one in alone]


def test_an_answer_of_no_chat_has_no_message_and_a_plain_one_its_text(llm: LLM) -> None:
    assert only(llm.generate("x", PARAMS)).message is None
    plain = only(llm.chat(QUESTION, PARAMS))
    assert plain.message == {"role": "assistant", "content": plain.text}
    shaped = only(llm.chat(QUESTION, PARAMS, structured=StructuredOutput("choice", ["yes", "no"])))
    assert shaped.message is not None
    assert shaped.message["content"] in ("yes", "no")


def test_what_cannot_be_is_named(llm: LLM) -> None:
    loose = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    function = {"name": "f", "parameters": loose}
    answer = only(llm.chat(QUESTION, PARAMS, tools=[{"type": "function", "function": function}]))
    assert answer.message is not None
    strict = [{"type": "function", "function": {**function, "strict": True}}]
    with pytest.raises(GrammarError, match="uniqueItems"):
        llm.chat(QUESTION, PARAMS, tools=strict)
    for tools, choice, param in (
        ([5], None, "tools[0]"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "tools[0].function.name"),
        (TOOLS, "sometimes", "tool_choice"),
        (None, "required", "tool_choice"),
    ):
        with pytest.raises(ParameterError) as caught:
            llm.chat(QUESTION, PARAMS, tools=tools, tool_choice=choice)  # type: ignore[arg-type]
        assert caught.value.param == param
