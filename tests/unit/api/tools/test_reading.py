# SPDX-License-Identifier: Apache-2.0
"""Reading answers: what is found depends on the text alone, not on how it was cut into pieces; nothing is lost."""

import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from linnet.api.tools import NO_PARAMETERS, Answer, AnswerForm, Tool
from linnet.api.tools.names import CALL_FORMS, THOUGHTS

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = {"get_weather": Tool("get_weather", SCHEMA), "now": Tool("now", NO_PARAMETERS)}
ARGUMENTS: dict[str, Any] = {"city": 'Zü"rich\n<x> \\é', "days": 3}
BARE = ("llama3_json", "pythonic")
"""Forms whose calls are the whole answer."""


def form_of(name: str, **more: Any) -> AnswerForm:
    return AnswerForm(calls=CALL_FORMS[name], tools=TOOLS, **more)


def texts(name: str) -> list[str]:
    written = CALL_FORMS[name].written
    one, two = written("get_weather", ARGUMENTS), written("now", {})
    return [
        "", " \n", "hello <world> [x] {y}", one, f"{one}\n{two}", f"Well.\n{one}", f"{one} and more", one[:-3],
        one[: len(one) // 2], one.replace("get_weather", "unknown"), one.replace("{", "[", 1), '{"a": [1]}', "[1, 2]",
        '<tool_call>{"arguments": {}, "name": "now"}</tool_call>', "a <tool b <", "<think>x</think>\n\ny",
    ]  # fmt: skip


def cuts(text: str) -> Iterator[list[str]]:
    """Every cut into two, all letters apart, and some others."""
    for at in range(len(text) + 1):
        yield [text[:at], text[at:]]
    yield list(text)
    drawn = random.Random(len(text))
    for _ in range(8):
        places = sorted(drawn.randrange(len(text) + 1) for _ in range(5))
        yield [text[begin:end] for begin, end in pairwise([0, *places, len(text)])]


@pytest.mark.parametrize("name", CALL_FORMS)
def test_pieces_come_to_the_same_however_they_are_cut(name: str) -> None:
    for text in texts(name):
        for form in (form_of(name), form_of(name, thoughts=THOUGHTS["think"])):
            whole = form.read(text)
            for pieces in cuts(text):
                reader = form.reader()
                deltas = [*map(reader.feed, pieces), reader.finish()]
                assert Answer.of(deltas) == whole, (text, pieces)
                named = [piece.name for delta in deltas for piece in delta.calls if piece.name is not None]
                assert len(named) == reader.calls == len(whole.calls)


@pytest.mark.parametrize("name", CALL_FORMS)
def test_calls_are_found(name: str) -> None:
    written = CALL_FORMS[name].written
    one, two = written("get_weather", ARGUMENTS), written("now", {})
    separator = "; " if name == "llama3_json" else "\n"
    if name == "pythonic":
        one, two, separator = one[:-1], two[1:], ", "
    read = form_of(name).read(f"{one}{separator}{two}")
    assert [(called, json.loads(given)) for called, given in read.calls] == [("get_weather", ARGUMENTS), ("now", {})]
    assert read.content == ""
    if name not in BARE:
        assert form_of(name).read(f"Well.\n{one}").content == "Well."


@pytest.mark.parametrize("name", CALL_FORMS)
def test_what_is_no_call_is_content(name: str) -> None:
    one = CALL_FORMS[name].written("unknown", ARGUMENTS)
    form = form_of(name)
    for text in (one, "hello", " hello ", '{"answer": 42}', '{"name": "now"}', "[1, 2, 3]"):
        read = form.read(text)
        assert read.calls == ()
        assert read.content.strip()
        if name != "openai":  # whose marks say where text is, and are no text
            assert read.content == text


@pytest.mark.parametrize("name", CALL_FORMS)
def test_arguments_that_were_cut_off_do_not_look_whole(name: str) -> None:
    """An answer that ends within them has the beginning of their JSON, never an object that was not written."""
    one = CALL_FORMS[name].written("get_weather", ARGUMENTS)
    end = one.index("3")
    for length in range(end):
        for _, arguments in form_of(name).read(one[:length]).calls:
            with pytest.raises(json.JSONDecodeError):
                json.loads(arguments)


def test_arguments_come_as_they_are_written() -> None:
    reader = form_of("hermes").reader()
    assert not reader.feed("<tool_call>\n")
    assert not reader.feed('{"name": "get_')
    assert not reader.feed('weather", "arguments": ')
    (first,) = reader.feed('{"ci').calls
    assert (first.index, first.name, first.arguments) == (0, "get_weather", '{"ci')
    (more,) = reader.feed('ty": "x"').calls
    assert (more.index, more.name, more.arguments) == (0, None, 'ty": "x"')
    (last,) = reader.feed("}}\n</tool_call>").calls
    assert last.arguments == "}"
    assert not reader.finish()


def test_unusual_spellings() -> None:
    hermes = form_of("hermes")
    assert hermes.read('<tool_call>{"arguments": {"city": "x"}, "name": "now"}</tool_call>').calls == (
        ("now", '{"city": "x"}'),
    )
    assert hermes.read('<tool_call>{"name":"now","arguments":"{}"}</tool_call>').calls == (("now", "{}"),)
    assert hermes.read('<tool_call>{"name": "now", "arguments": {}, "id": 5}</tool_call>!').content == "!"
    bare = form_of("llama3_json")
    assert bare.read('<|python_tag|>{"name": "now", "arguments": {}}').calls == (("now", "{}"),)
    listed = form_of("mistral")
    for text in ('[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}]', "[TOOL_CALLS]now[ARGS]{}",
                 "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}", "[TOOL_CALLS]now{}"):  # fmt: skip
        assert listed.read(text).calls == (("now", "{}"),)
    assert (
        form_of("pythonic").read("[get_weather(city='a', days=-3), now()]").calls[0][1] == '{"city": "a", "days": -3}'
    )
    for text in ("[now(1)]", "[now(**{})]", "[now(x=__import__('os'))]", "[x.now()]", "[" * 40, "[now(x=1e999)]"):
        assert form_of("pythonic").read(text) == Answer(text)


def test_values_that_are_no_texts_are_json() -> None:
    text = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n12\n</parameter>\n"
    )
    found = form_of("qwen3_coder").read(f"{text}<parameter=other>\nnot json\n</parameter>\n</function>\n</tool_call>")
    assert json.loads(found.calls[0][1]) == {"city": "12", "days": 12, "other": "not json"}


def test_channels() -> None:
    text = ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>Yes.<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>")  # fmt: skip
    assert form_of("openai").read(text) == Answer("I look.", "Hm.\nYes.", (("now", "{}"),))
    assert form_of("openai").read("<|channel|>final<|message|>Hi<|return|>") == Answer("Hi")
    assert form_of("openai").read("<|channel|>analysis<|message|>Hm") == Answer("", "Hm")


def test_thoughts() -> None:
    form = AnswerForm(thoughts=THOUGHTS["think"])
    assert form.read("<think>\nHm <b>\n</think>\n\nYes. ") == Answer("Yes. ", "Hm <b>")
    assert form.read("<think>\n\n</think>\n\nYes.") == Answer("Yes.")
    assert form.read(" Yes. <think>no</think>") == Answer(" Yes. <think>no</think>")
    assert form.read("<think>cut off") == Answer("", "cut off")
    begun = AnswerForm(thoughts=THOUGHTS["think"], begun=True)
    assert begun.read("Hm</think>Yes.") == Answer("Yes.", "Hm")
    reader = begun.reader()
    assert reader.thinking
    reader.feed("Hm</think>")
    assert not reader.thinking


def seconds(name: str, unit: str) -> float:
    """The least of three, of reading so many of the unit in small pieces."""
    text, best = unit * (60_000 // len(unit)), float("inf")
    for _ in range(3):
        reader, began = form_of(name).reader(), time.thread_time()
        for at in range(0, len(text), 4):
            reader.feed(text[at : at + 4])
        reader.finish()
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize(("name", "unit"), [("hermes", "\n"), ("openai", "<|start|>")])
def test_no_text_takes_more_than_linear_time(name: str, unit: str) -> None:
    assert seconds(name, unit) < 20 * seconds(name, "x")


def test_a_name_that_does_not_end_is_none() -> None:
    """Where what stands before a call's arguments is too long, what comes after it is read like any other text."""
    read = form_of("openai").read(f"<|channel|>{'x' * 1000}{CALL_FORMS['openai'].written('now', {})}")
    assert read == Answer("x" * 1000, calls=(("now", "{}"),))
