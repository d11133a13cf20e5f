# SPDX-License-Identifier: Apache-2.0
"""Grammars of answers with calls: what a form writes is allowed, and nothing but that where it begins."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from linnet.api.structured import literal
from linnet.api.tools import NO_PARAMETERS, AnswerForm, Tool
from linnet.api.tools.grammar import Rules
from linnet.api.tools.names import CALL_FORMS, THOUGHTS
from linnet.engine.guidance import Compiler
from linnet.engine.matcher import mask_words
from linnet.engine.vocabulary import Vocabulary

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                       "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)  # fmt: skip
TOOLS = [WEATHER, Tool("now", NO_PARAMETERS)]
ARGUMENTS = {"city": "Bern", "days": 3, "unit": "C"}


@cache
def compiler(special: tuple[str, ...]) -> Compiler:
    """For a vocabulary of bytes and some special tokens, the last of which ends texts."""
    tokens = [bytes([byte]) for byte in range(256)] + [one.encode() for one in (*special, "<end>")]
    lengths = np.array([len(one) for one in tokens], np.int32)
    ids = tuple(range(256, len(tokens)))
    return Compiler(Vocabulary(text=b"".join(tokens), lengths=lengths, special_ids=ids, eos_ids=ids[-1:]))


def allows(grammar: str, text: str, special: tuple[str, ...] = ()) -> bool:
    """Whether it is a whole answer."""
    matcher, end = compiler(special).matcher(grammar), 256 + len(special)
    ids: list[int] = []
    while text:
        one = next((one for one in special if text.startswith(one)), "")
        ids += [256 + special.index(one)] if one else text[0].encode()
        text = text[len(one) or 1 :]
    for count, token_id in enumerate([*ids, end]):
        mask = np.zeros(mask_words(end + 1), np.uint32)
        if not matcher.fill(mask, frozenset({end})):
            return count == len(ids)
        if not mask[token_id // 32] >> np.uint32(token_id % 32) & 1:
            return False
        matcher.accept(token_id)
    return True


def grammar(
    name: str,
    special: tuple[str, ...],
    *,
    tools: Any = TOOLS,
    must: bool = False,
    many: bool = True,
    said: str | None = None,
    thinks: bool = False,
    begun: bool = False,
    loose: bool = False,
) -> str:
    rules = Rules({one: 256 + index for index, one in enumerate(special)}, loose)
    answer = None if said is None else rules.rule(said)
    body = CALL_FORMS[name].grammar(rules, tools, many=many, must=must, said=answer)
    thoughts = THOUGHTS["think"].grammar(rules, begun) if thinks else ""
    return rules.document(f"{thoughts} {body}")


def written(name: str, tool: str, arguments: Any) -> str:
    return CALL_FORMS[name].written(tool, arguments).removesuffix("<|call|>")


@pytest.mark.parametrize("as_tokens", [False, True], ids=["letters", "tokens"])
@pytest.mark.parametrize("name", CALL_FORMS)
def test_a_call_is_allowed_and_no_other(name: str, as_tokens: bool) -> None:
    special = (*CALL_FORMS[name].markers, "<think>", "</think>") if as_tokens else ()
    one, now = written(name, "get_weather", ARGUMENTS), written(name, "now", {})
    final = "<|channel|>final<|message|>" if name == "openai" else ""
    auto, must = grammar(name, special), grammar(name, special, must=True)
    form = grammar(name, special, said='"yes" | "no"')
    assert all(allows(one_of, call, special) for one_of in (auto, must, form) for call in (one, now))
    assert allows(auto, f"{final}It is {{sunny}} [here], said: get_weather(", special)
    assert not allows(must, f"{final}It is sunny", special)
    assert allows(form, f"{final}no", special)
    assert not allows(form, f"{final}maybe", special)
    assert not allows(auto, one.replace("get_weather", "get_other"), special)
    wrong = written(name, "get_weather", {"city": "Bern", "days": [3]})
    if name != "pythonic":  # holds to names only
        assert not allows(auto, wrong, special)
        assert not allows(must, written(name, "get_weather", {}), special)
        assert allows(grammar(name, special, must=True, loose=True), wrong, special)
        strict = [Tool(WEATHER.name, WEATHER.schema, strict=True)]
        assert not allows(grammar(name, special, tools=strict, must=True, loose=True), wrong, special)


@pytest.mark.parametrize("name", [name for name in CALL_FORMS if name != "openai"])
def test_thoughts_may_stand_before(name: str) -> None:
    call = written(name, "now", {})
    for special in ((), ("<think>", "</think>")):
        for must in (False, True):
            asked = grammar(name, special, must=must, thinks=True)
            assert allows(asked, call, special)
            assert allows(asked, f"<think>\nso <tool_ [TOOL\n</think>\n\n{call}", special)
            begun = grammar(name, special, must=must, thinks=True, begun=True)
            assert allows(begun, f"so\n</think>\n\n{call}", special)
            assert not allows(begun, "so I never stop", special)


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral_named", "deepseek_v3", "deepseek_v31", "glm45",
                                  "qwen3_coder", "llama3_json"])  # fmt: skip
def test_one_call_or_several(name: str) -> None:
    one, now = written(name, "get_weather", ARGUMENTS), written(name, "now", {})
    both = {
        "mistral": lambda: one[:-1] + ", " + now.removeprefix("[TOOL_CALLS]["),
        "mistral_named": lambda: one + now,
        "llama3_json": lambda: f"{one}; {now}",
    }.get(name, lambda: f"{one}\n{now}")()
    if name.startswith("deepseek"):
        both = one.removesuffix("<｜tool▁calls▁end｜>") + now.removeprefix("<｜tool▁calls▁begin｜>")
    read = AnswerForm(calls=CALL_FORMS[name], tools={tool.name: tool for tool in TOOLS}).read(both)
    assert [called for called, _ in read.calls] == ["get_weather", "now"]
    for must in (False, True):
        assert allows(grammar(name, (), must=must), both)
        assert allows(grammar(name, (), must=must, many=False), one)
        assert not allows(grammar(name, (), must=must, many=False), both)


def test_texts_are_spelled_with_the_tokens_in_them() -> None:
    rules = Rules({"<|a|>": 7, "<|ab|>": 8})
    assert rules.text('x<|a|>y"<|ab|>') == f"{literal('x')} <[7]> {literal('y' + chr(34))} <[8]>"
