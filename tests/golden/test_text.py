# SPDX-License-Identifier: Apache-2.0
"""Text equals transformers: chat templates rendered, prompts encoded and decoded, special tokens and files read."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import ConfigError
from linnet.text import Tokenizer

transformers = pytest.importorskip("transformers")

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]")

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if reasoning %}{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {%- generation %}{{- content }}{%- endgeneration %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

INSTRUCT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set messages = messages[1:] %}{% else %}{% set system = false %}{% endif %}
{% for message in messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if message['role'] == 'user' %}
    {% if loop.first and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {{ '[INST] ' + content.strip() + ' [/INST]' }}
  {% elif message['role'] == 'assistant' %}
    {{ ' ' + message['content'].strip() + ' ' + eos_token }}
  {% endif %}
{% endfor %}"""

PIECES = {
    "chatml": CHATML,
    "instruct": INSTRUCT,
    "block whitespace": "a\n  {% if true %}\n  b {{- ' c ' -}}  d\n  {% endif %}  \n{# note #}\n e\n\n",
    "loop controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
    "{% if i > 5 %}{% break %}{% endif %}{{ i }}{{ loop.last }},{% endfor %}",
    "json": "{{ messages|tojson }}|{{ messages|tojson(indent=2) }}|"
    "{{ {'b': 1, 'a': '<é&\\'>'}|tojson(sort_keys=true) }}|"
    "{{ 'é'|tojson(ensure_ascii=true) }}|{{ [1, 2]|tojson(separators=(',', ':')) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "macros": "{% macro turn(m, sep='|') %}[{{ m.role }}{{ sep }}{{ m.content | trim }}]{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ turn(m, sep=':') }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "dictionaries": "{% set d = dict(a=1, b=2) %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}"
    "{{ dict.fromkeys(['x'], 0) }}",
    "strings": "{{ messages[0].content.split(' ')|join('_') }}{{ '%s-%d' % ('a', 3) }}{{ 'a' ~ 1 ~ none ~ true }}"
    "{{ messages[0].content[:2] + messages[0].content[-2:] }}{{ 'aXb'.replace('X', 'YY') }}{{ '{} {}'.format(1, 'z') }}"
    "{{ 'x' * 3 }}{{ ' a '|trim }}{{ 'ab'|upper }}{{ ['b', 'a']|sort }}{{ 'l1\\nl2'|indent(4) }}",
    "tests": "{{ messages is iterable }}{{ messages[0] is mapping }}{{ undefined_name is defined }}"
    "{{ undefined_name|default('d') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    "{{ messages|map(attribute='role')|join(',') }}{{ messages|rejectattr('role', 'in', ['user'])|list|length }}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ unk_token }}",
    "documents": "{% for d in documents or [] %}{{ d.title }}: {{ d.text }}\n{% endfor %}{{ add_generation_prompt }}",
    "tools": "{{ tools is none }}{{ tools }}",
    "dates": "{{ strftime_now('%Y') }}",
    "integers": "{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}{{ 1.5|round }}{{ '3'|int + 1 }}",
    "filters": "{{ [1, 2, 3]|batch(2, 0)|list }}{{ 'a b c'|wordcount }}{{ {'b': 1, 'a': 2}|dictsort }}"
    "{{ [3, 1]|first }}{{ 'abcdef'|truncate(4, true) }}{{ 'q'|center(5) }}{{ [[1, 2], [3]]|sum(start=[]) }}",
    "inline": "{{ 'x' if messages|length > 1 else 'y' }}{{ messages[-1]['role'] }}{{ messages[5] }}",
    "set blocks": "{% set text %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}{{ text|trim }}",
    "whitespace control": "{%- for m in messages +%}\n  {{ m.role }}  \n{%- endfor -%}\n\n end",
    "call blocks": "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{% endcall %}",
    "filter blocks": "{% filter upper %}shout {{ messages[0].role }}{% endfilter %}",
}

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a <city> & more",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", 'a"b']}}},
    },
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello there, <b>you</b> & 'me' é😀"}],
    "system": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " Hi \n"}],
    "turns": [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "user", "content": "c"},
    ],
    "tools": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "reasoning": "look it up",
         "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}]},
        {"role": "tool", "content": "sunny", "name": "get_weather"},
    ],
    "blocks": [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}],
    "wrong order": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}],
}  # fmt: skip


def write(directory: Path, template: object = None, **config: object) -> Path:
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in alphabet]
    letters = [chr(byte) if byte in alphabet else chr(0x100 + others.index(byte)) for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate([*TOKENS, *letters])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    description = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(TOKENS)],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
        },
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                  "merges": []},
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(description))
    entry = {"chat_template": template} if template is not None else {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"}, "image_token": "<image>", **entry, **config,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def both(directory: Path) -> tuple[Tokenizer, Any]:
    return Tokenizer.from_directory(directory), transformers.AutoTokenizer.from_pretrained(directory)


def outcome(render: Any, refusal: type[Exception] = Exception) -> tuple[str, str]:
    """The text, or the fact that it was refused (wordings differ)."""
    try:
        return "text", render()
    except refusal:
        return "refused", ""


@pytest.mark.parametrize("piece", PIECES)
def test_templates_render_as_in_transformers(tmp_path: Path, piece: str) -> None:
    ours, theirs = both(write(tmp_path, PIECES[piece]))
    compared = texts = 0
    for name, messages in CONVERSATIONS.items():
        for tools in (None, [TOOL]):
            for add in (False, True):
                for extra in ({}, {"enable_thinking": False, "bos_token": "<<own>>"}):
                    documents = [{"title": "T", "text": "some é"}] if tools else None
                    mine = outcome(
                        lambda m=messages, t=tools, a=add, d=documents, e=extra: ours.apply_chat_template(
                            m, add_generation_prompt=a, tools=t, documents=d, template_arguments=e
                        ),
                        ConfigError,
                    )
                    yours = outcome(
                        lambda m=messages, t=tools, a=add, d=documents, e=extra: theirs.apply_chat_template(
                            m, add_generation_prompt=a, tools=t, documents=d, tokenize=False, **e
                        )
                    )
                    assert mine == yours, f"{piece}, {name}, tools {tools is not None}, prompt {add}, {extra}"
                    compared += 1
                    texts += mine[0] == "text"
    assert compared == len(CONVERSATIONS) * 8
    assert texts > 0


@pytest.mark.parametrize("name", ["one", "turns", "blocks", "system"])
def test_continuing_the_final_message(tmp_path: Path, name: str) -> None:
    for template in (CHATML, PIECES["json"], "{% for m in messages %}{{ m.content|trim }}{% endfor %}"):
        ours, theirs = both(write(tmp_path, template))
        messages = CONVERSATIONS[name]
        mine = outcome(
            lambda m=messages, t=ours: t.apply_chat_template(
                m, add_generation_prompt=False, continue_final_message=True
            ),
            ConfigError,
        )
        yours = outcome(
            lambda m=messages, t=theirs: t.apply_chat_template(m, tokenize=False, continue_final_message=True)
        )
        assert mine == yours


def test_named_templates_are_chosen_alike(tmp_path: Path) -> None:
    entry = [{"name": name, "template": name.upper()} for name in ("default", "tool_use", "rag")]
    ours, theirs = both(write(tmp_path, entry))
    messages = CONVERSATIONS["one"]
    for tools in (None, [TOOL]):
        for name in (None, "default", "rag"):
            yours = theirs.apply_chat_template(messages, tools=tools, chat_template=name, tokenize=False)
            assert ours.apply_chat_template(messages, tools=tools, template=name) == yours


def test_template_files_win_alike(tmp_path: Path) -> None:
    directory = write(tmp_path, "config")
    (directory / "chat_template.jinja").write_text("file {{ messages[0].role }}\n")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("tool file")
    ours, theirs = both(directory)
    for tools in (None, [TOOL]):
        yours = theirs.apply_chat_template(CONVERSATIONS["one"], tools=tools, tokenize=False)
        assert ours.apply_chat_template(CONVERSATIONS["one"], tools=tools) == yours


def test_the_clock(tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, PIECES["dates"]), clock=lambda: datetime.datetime(1999, 1, 1))
    assert ours.apply_chat_template(CONVERSATIONS["one"]) == "1999"


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_encoding_and_bos(tmp_path: Path, add_bos: bool | None) -> None:
    settings = {} if add_bos is None else {"add_bos_token": add_bos}
    ours, theirs = both(write(tmp_path, INSTRUCT, **settings))
    for text in ("", "plain text", " é😀 <s>tokens</s> <image> end ", "<|im_start|>x\n\n y"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_a_chat_has_one_bos(tmp_path: Path) -> None:
    ours, theirs = both(write(tmp_path, INSTRUCT))
    prompt = ours.apply_chat_template(CONVERSATIONS["one"])
    ids = theirs.apply_chat_template(CONVERSATIONS["one"], add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(prompt) == ids
    assert ids.count(3) == 1


def test_special_tokens_of_the_map_and_of_the_config(tmp_path: Path) -> None:
    size = len(TOKENS) + 256
    for declared in ({}, {"added_tokens_decoder": {str(size): {"content": "<x>", "special": True, "lstrip": True}}}):
        directory = write(tmp_path / str(len(declared)), PIECES["special tokens"], **declared)
        (directory / "special_tokens_map.json").write_text(
            json.dumps({"pad_token": "<|im_end|>", "unk_token": {"content": "<unk>", "lstrip": False}})
        )
        ours, theirs = both(directory)
        messages = CONVERSATIONS["one"]
        assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages, tokenize=False)
        for text in ("a <x> b<image>", "<unk>"):
            assert ours.encode(text) == theirs.encode(text), (declared, text)
