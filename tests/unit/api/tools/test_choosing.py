# SPDX-License-Identifier: Apache-2.0
"""Which form a template's model writes calls and thoughts in, and how messages with calls go through it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tool_templates import BEGUN, FORMS, LISTED, PLAIN, TAGGED_OBJECTS, THINKING, WITHOUT_SYSTEM

from linnet.api.tools import NO_PARAMETERS, Answer, AnswerForm, ModelForms, Tool, ToolUse
from linnet.api.tools.names import CALL_FORMS
from linnet.errors import ConfigError
from linnet.text import ChatTemplates

USER = {"role": "user", "content": "weather?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
USE = ToolUse((Tool("get_weather", SCHEMA), Tool("now", NO_PARAMETERS)), (TOOL,))
ARGUMENTS = {"city": 'Zürich "x"', "days": 3}
CALL = {"id": "call_abcdef0123456789", "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "name": "get_weather", "content": "sunny there"}
CONVERSATION = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT]


def forms_of(template: str, **names: str) -> tuple[ModelForms, ChatTemplates]:
    templates = ChatTemplates({"default": template})
    tokenizer: Any = SimpleNamespace(
        templates=templates,
        call_shape=lambda: templates.call_shape({}),
        token_id=lambda text: None,
        special_token_ids=frozenset(),
    )
    return ModelForms(tokenizer, **names), templates


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_found_and_what_was_answered_can_be_sent_back(name: str) -> None:
    forms, templates = forms_of(FORMS[name])
    assert forms.calls is CALL_FORMS[name]
    messages, tools = forms.shown(CONVERSATION, USE)
    text = templates.render(messages, tools=tools)
    assert "sunny there" in text
    assert "get_weather" in text.partition("weather?")[0] + text.partition("weather?")[2]
    tools_by_name = {tool.name: tool for tool in USE.tools}
    read = AnswerForm(calls=forms.calls, tools=tools_by_name).read(_turn_of(name, text))
    assert [(called, json.loads(given)) for called, given in read.calls] == [("get_weather", ARGUMENTS)]


def _turn_of(name: str, text: str) -> str:
    """What the assistant says in the rendered conversation."""
    said = text.rpartition("weather?")[2]
    begins = {"llama3_json": '{"name"', "openai": " to=functions", "pythonic": "[get_weather("}
    ends = {"llama3_json": "<|eot_id|>", "pythonic": "<|tool|>"}
    if name in begins:
        said = begins[name] + said.partition(begins[name])[2]
    return said.partition(ends.get(name, "sunny there"))[0]


def test_ids_are_shortened_where_a_template_wants_it() -> None:
    forms, templates = forms_of(LISTED)
    assert forms.shape.short_ids
    assert CALL["id"] not in templates.render(CONVERSATION)
    form = AnswerForm(short_ids=True)
    assert len(form.identity("request", 0, 0)) == 9
    assert form.identity("request", 0, 0).isalnum()
    assert AnswerForm().identity("r", 0, 0) != AnswerForm().identity("r", 0, 1)


@pytest.mark.parametrize("template", [PLAIN, WITHOUT_SYSTEM])
def test_a_template_that_knows_no_tools_is_told_in_words(template: str) -> None:
    forms, templates = forms_of(template)
    assert forms.shape.shown is None
    messages, tools = forms.shown([*CONVERSATION, {"role": "user", "content": "And?"}], USE)
    assert tools is None
    text = templates.render(messages)
    assert text.count("<tool_call>") == 2  # how, and what was called
    assert json.dumps(TOOL, ensure_ascii=False) in text
    assert "<tool_response>\nsunny there\n</tool_response>\nAnd?" in text
    assert [message["role"] for message in messages if message["role"] != "system"] == ["user", "assistant", "user"]
    plain, none = forms.shown([USER], None)
    assert (plain, none) == ([USER], None)


def test_tools_join_the_system_message_there_is() -> None:
    forms, _ = forms_of(PLAIN)
    for own in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        messages, _ = forms.shown([{"role": "system", "content": own}, USER], USE)
        assert [message["role"] for message in messages] == ["system", "user"]
        said = messages[0]["content"]
        said = said if isinstance(said, str) else "".join(part["text"] for part in said)
        assert said.startswith("Be brief.")
        assert "get_weather" in said


def test_arguments_that_are_no_object_are_one_sentence() -> None:
    _, templates = forms_of(TAGGED_OBJECTS)
    broken = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": '}}
    with pytest.raises(ConfigError, match=r"messages\[1\].tool_calls\[0\].function.arguments must be the JSON text"):
        templates.render([USER, {"role": "assistant", "content": "", "tool_calls": [broken]}])
    plain, _ = forms_of(PLAIN)
    for text in ('{"city": ', "5", "[" * 100_000):
        broken = {**CALL, "function": {"name": "get_weather", "arguments": text}}
        with pytest.raises(
            ConfigError, match=r"messages\[1\].tool_calls\[0\].function.arguments must be the JSON text"
        ):
            plain.shown([USER, {"role": "assistant", "content": "", "tool_calls": [broken]}], USE)


def test_thoughts_are_found_and_where_they_begin() -> None:
    assert forms_of(TAGGED_OBJECTS)[0].thoughts is None
    assert forms_of(THINKING, reasoning_parser="none")[0].thoughts is None
    assert forms_of(PLAIN, reasoning_parser="deepseek_r1")[0].thoughts is not None
    for template, text in ((THINKING, "<think>\nWell.\n</think>\n\nYes."), (BEGUN, "Well.\n</think>\n\nYes.")):
        forms, templates = forms_of(template)
        form = forms.answer_form(templates.render([USER]), None, None)
        assert form is not None
        assert form.read(text) == Answer("Yes.", "Well.")
    forms, templates = forms_of(THINKING)
    closed = forms.answer_form(templates.render([USER]) + "<think>\n\n</think>\n\n", None, None)
    assert closed is not None
    assert closed.begun is None
    assert closed.read("Yes.") == Answer("Yes.")
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Well."}
    assert "<think>\nWell.\n</think>\n\nYes." in templates.render([USER, said, USER])


def test_a_model_without_either_is_read_as_it_is() -> None:
    forms, _ = forms_of(PLAIN)
    assert forms.answer_form("", None, None) is None
    assert forms.answer_form("", USE, None) is not None


def test_parsers_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="tool_parser is 'x'"):
        forms_of(PLAIN, tool_parser="x")
    with pytest.raises(ConfigError, match="reasoning_parser is 'x'"):
        forms_of(PLAIN, reasoning_parser="x")
    assert forms_of(PLAIN, tool_parser="pythonic")[0].calls is CALL_FORMS["pythonic"]
