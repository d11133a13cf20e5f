# SPDX-License-Identifier: Apache-2.0
"""Chat templates: choice, quirks, refusals and limits. Equality with transformers is in tests/golden/test_text.py."""

import json
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from linnet.errors import CheckpointError, ConfigError
from linnet.text import ChatTemplates

USER = [{"role": "user", "content": "hi"}]


def render(source: str, **arguments: object) -> str:
    return ChatTemplates({"default": source}).render(USER, **arguments)  # type: ignore[arg-type]


def test_clock_is_injected() -> None:
    templates = ChatTemplates({"default": "{{ strftime_now('%d %b %Y') }}"}, clock=lambda: datetime(2031, 2, 3))
    assert templates.render(USER) == "03 Feb 2031"


def test_refusal_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="refused the messages: only one system message"):
        render("{{ raise_exception('only one system message') }}")


def test_named_templates_and_their_choice(tmp_path: Path) -> None:
    entry = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    templates = ChatTemplates.from_directory(tmp_path, {"chat_template": entry})
    assert templates.render(USER) == "plain"
    assert templates.render(USER, tools=[{"type": "function"}]) == "tools"
    assert templates.render(USER, name="tool_use") == "tools"
    with pytest.raises(ConfigError, match="no chat template named 'x'; this checkpoint has default, tool_use"):
        templates.render(USER, name="x")


def test_files_win_over_the_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    templates = ChatTemplates.from_directory(tmp_path, {"chat_template": "config"})
    assert templates.names == ("default", "rag")
    assert templates.render(USER) == "file"


def test_no_template_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplates({}).render(USER)


def test_defects_are_known_before_the_first_conversation() -> None:
    templates = ChatTemplates({"default": "fine", "rag": "a\n{% if %}", "tool_use": "{{ x | nothing }}"}, where="model")
    defects = templates.defects()
    assert [str(defect) for defect in defects] == [f"model: {defect.sentence}" for defect in defects]
    assert defects[0].sentence.startswith("chat template 'rag', line 2, does not compile: ")
    assert len(defects) == 2
    assert templates.render(USER) == "fine"
    assert ChatTemplates({}).defects() == ()


@pytest.mark.parametrize("entry", [3, [1], [{"name": "default"}], [], {"default": 1}, [{"template": "x"}]])
def test_malformed_entries_are_refused(tmp_path: Path, entry: object) -> None:
    with pytest.raises(CheckpointError, match="chat_template must be"):
        ChatTemplates.from_directory(tmp_path, {"chat_template": entry})


@pytest.mark.parametrize("source", ["{% for %}", "{{ 1", "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% unknown %}"])
def test_templates_that_do_not_compile_are_the_checkpoints_fault(source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template 'default'"):
        render(source)


def test_oversized_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("x" * (1 << 20) + "y")
    with pytest.raises(CheckpointError, match="at most"):
        ChatTemplates.from_directory(tmp_path, {})


@pytest.mark.parametrize(
    "messages", [[], "hi", {"role": "user"}, [1], [["a"]], [{"role": object()}], [{"role": {"a": b"\0"}}], None]
)
def test_messages_are_lists_of_plain_objects(messages: object) -> None:
    with pytest.raises(ConfigError):
        ChatTemplates({"default": "{{ messages }}"}).render(messages)  # type: ignore[arg-type]


def test_deep_and_large_messages_are_refused() -> None:
    deep: object = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ConfigError, match="deeper"):
        ChatTemplates({"default": ""}).render([{"content": deep}])
    with pytest.raises(ConfigError, match="characters"):
        ChatTemplates({"default": ""}).render([{"content": "x" * (9 << 20)}])


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{{ dict.__class__ }}{{ dict.mro() }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__base__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__globals__['sys'] }}",
    "{{ self.__init__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ messages.append(1) }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    """Refused, or rendered to nothing (an undefined value): never an object of Python's."""
    try:
        text = render(source)
    except ConfigError:
        return
    assert "<" not in text


GREEDY = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{{ range(99999)|map('string')|map('length')|sum }}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x.join(['', '', '', '']) ~ 'a' %}"
    "{% endfor %}",
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * [1] }}",
    "{{ 'a'|center(10000000000) }}",
    "{{ 'a'.center(10000000000) }}",
    "{{ 'a'.zfill(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10000000000, 1) }}",
    "{{ '%10000000000d'|format(1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10000000000) }}",
    "{{ 'a\n'|indent(10000000000) }}",
    "{{ [1]|tojson(indent=10000000000) }}",
    "{{ [1]|batch(10000000000, 'x')|list }}",
    "{{ 9 ** 999999999 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
]


@pytest.mark.parametrize("source", GREEDY)
def test_time_and_size_are_bounded(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplates({"default": source}, render_seconds=0.3).render(USER)
    assert time.monotonic() - started < 3


def test_the_tracer_of_a_debugger_is_put_back() -> None:
    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        render("{{ messages[0].content }}")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_none_is_dropped_and_reasoning_has_all_its_names() -> None:
    source = "{{ 'content' in messages[0] }} {{ messages[0].thinking }} {{ messages[0].reasoning_content }}"
    messages = [{"role": "assistant", "content": None, "reasoning": "why"}]
    assert ChatTemplates({"default": source}).render(messages) == "False why why"


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "x": None}]
    before = json.dumps(messages)
    source = "{{ messages[-1].content[0].text }}"
    templates = ChatTemplates({"default": source})
    assert templates.render(messages, add_generation_prompt=False, continue_final_message=True) == "a"
    assert json.dumps(messages) == before
    with pytest.raises(ConfigError, match="cannot both"):
        templates.render(messages, continue_final_message=True)


PARTS_ONLY = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% elif c.type == 'image' %}<image>{% endif %}"
    "{% endfor %}{% endfor %}"
)
TEXT_ONLY = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}[{{ c['text'] }}]{% endfor %}{% endif %}{% endfor %}"
)
PARTS_FOR_USERS = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content[0]['text'] }}"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PARTS_ONLY, "<s><system>be brief<user>hello<assistant>ok<user>onetwo"),
        (TEXT_ONLY, "<system>be brief<user>hello<assistant>ok<user>one\ntwo"),
        (BOTH, "<system>be brief<user>hello<assistant>ok<user>[one][two]"),
        (PARTS_FOR_USERS, "<system>be brief<user>hello<assistant>ok<user>one"),
        ("{{ messages | tojson }}", json.dumps([*TALK[:3], TALK[3] | {"content": "one\ntwo"}])),
        ('{% for m in messages %}"{{ m.content }}"{% endfor %}', '"be brief""hello""ok""one\ntwo"'),
        ("{% for m in messages %}{{ m.content | upper }} {% endfor %}", "BE BRIEF HELLO OK ONE\nTWO "),
    ],
)
def test_content_is_handed_over_in_the_form_that_the_template_shows(source: str, expected: str) -> None:
    """As a text or as parts, whichever the template reads (K1)."""
    before = json.dumps(TALK)
    templates = ChatTemplates({"default": source})
    for _ in range(2):  # found out the first time, known the second
        assert templates.render(TALK, arguments={"bos_token": "<s>"}) == expected
    assert json.dumps(TALK) == before


def test_what_is_no_text_stays_as_it_is() -> None:
    look = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}]
    assert ChatTemplates({"default": PARTS_ONLY}).render(look) == "<user>look<image>"
    assert ChatTemplates({"default": TEXT_ONLY}).render(look).startswith("<user>[{")


def test_a_message_that_goes_on_is_cut_in_either_form() -> None:
    talk = [*USER, {"role": "assistant", "content": "so far"}]
    for source in (PARTS_ONLY + "<end>", TEXT_ONLY + "<end>"):
        text = ChatTemplates({"default": source}).render(talk, add_generation_prompt=False, continue_final_message=True)
        assert text == "<user>hi<assistant>so far"


def test_a_template_that_leaves_the_user_out_is_refused() -> None:
    """Never a prompt without the user's text (K1)."""
    templates = ChatTemplates(
        {"default": "{% for m in messages %}{% if m.content is mapping %}x{% endif %}{% endfor %}"}
    )
    with pytest.raises(ConfigError, match="leaves out what the user says"):
        templates.render(USER)
    assert templates.render([{"role": "assistant", "content": "a"}]) == ""


def test_a_template_that_refuses_the_probe_gets_what_was_said() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[-1].content }}"
    templates = ChatTemplates({"default": source})
    assert templates.render(TALK[:2]) == "hello"
    with pytest.raises(ConfigError, match="refused the messages: no"):
        templates.render(USER)


def test_a_request_cannot_set_what_the_probe_sees() -> None:
    source = "{% if odd %}{{ raise_exception('odd') }}{% endif %}" + PARTS_ONLY
    templates = ChatTemplates({"default": source})
    with pytest.raises(ConfigError, match="odd"):
        templates.render(USER, arguments={"odd": True})
    assert templates.render(USER) == "<user>hi"
