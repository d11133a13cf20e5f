# SPDX-License-Identifier: Apache-2.0
"""From what is asked for to a grammar: every kind, every limit, and what an open model makes of it."""

import json
import re
from typing import Any

import pytest

from linnet import demo
from linnet.api import LLM, GrammarError, SamplingParams, StructuredOutput
from linnet.api.structured import MOST_BYTES

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "maximum": 120, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("json_schema", [], "must be an object"),
        ("json_schema", 5, "must be an object"),
        ("json_schema", False, "nothing matches"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", nested(64), "deeper than 64"),
        ("json_schema", {"enum": ["x" * MOST_BYTES]}, "accepted are at most 65536"),
        ("json_schema", " " * (MOST_BYTES + 1), "accepted are at most 65536"),
        ("regex", "", "empty"),
        ("regex", "^$", "empty"),
        ("regex", 5, "must be a text"),
        ("regex", "a" * (MOST_BYTES + 1), "accepted are at most"),
        ("choice", [], "list of texts"),
        ("choice", "ab", "list of texts"),
        ("choice", ["a", ""], "at least one character"),
        ("choice", ["a", 1], "at least one character"),
        ("choice", ["a"] * 5000, "accepted are at most 4096"),
        ("grammar", "  ", "empty"),
        ("grammar", '%llguidance {"no_forcing": false}\nstart: "a"', "not the request's"),
        ("structural_tag", {}, "structures"),
        ("structural_tag", {"structures": [{"begin": "<a>", "end": ""}], "triggers": ["<b"]}, "none of the triggers"),
        ("structural_tag", {"structures": [{"begin": 1}], "triggers": []}, "must have a begin and an end"),
        ("poem", None, "is no kind of structure; accepted: json_object"),
    ],
)
def test_what_is_no_description_is_refused(kind: Any, value: Any, said: str) -> None:
    with pytest.raises(GrammarError, match=said) as caught:
        StructuredOutput(kind, value).description()
    assert caught.value.param == "structured_outputs"


def test_a_schema_cannot_loosen_its_own_rules() -> None:
    text = StructuredOutput("json_schema", {"x-guidance": {"lenient": True}, "uniqueItems": True}).description()
    assert "lenient" not in text


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM(demo.model_directory(), max_model_len=512) as opened:
        yield opened


def answers(llm: LLM, structured: StructuredOutput, **params: Any) -> list[tuple[str, str]]:
    given = {"temperature": 1.2, "n": 4, "max_tokens": 400, "seed": 3} | params
    (output,) = llm.generate("Once", SamplingParams(**given), structured=structured)
    return [(one.text, one.finish_reason) for one in output.outputs]


def test_a_schema(llm: LLM) -> None:
    for text, reason in answers(llm, StructuredOutput("json_schema", SCHEMA)):
        assert reason == "stop"
        found = json.loads(text)
        assert set(found) == {"name", "age"}
        assert len(found["name"]) <= 6
        assert 0 <= found["age"] <= 120
    assert answers(llm, StructuredOutput("json_schema", json.dumps(SCHEMA))) == answers(
        llm, StructuredOutput("json_schema", SCHEMA)
    )


def test_any_object(llm: LLM) -> None:
    for text, reason in answers(llm, StructuredOutput("json_object"), max_tokens=60):
        assert text.lstrip().startswith("{")
        assert reason == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", ["[a-c]{3,9}x", "^ab/c?$", "a\\/b\nc", "x\\$", "(yes|no), \\w+!"])
def test_a_regular_expression(llm: LLM, pattern: str) -> None:
    for text, reason in answers(llm, StructuredOutput("regex", pattern), max_tokens=400):
        assert reason == "length" or re.fullmatch(pattern, text), text


def test_choices(llm: LLM) -> None:
    choices = ['a "quoted" one', "two\nlines", "\\", "é"]
    texts = {text for seed in range(9) for text, _ in answers(llm, StructuredOutput("choice", choices), seed=seed)}
    assert texts <= set(choices)
    assert len(texts) > 1


def test_a_grammar_and_what_it_ends_with(llm: LLM) -> None:
    grammar = 'start: "n = " NUMBER ";"\nNUMBER: /[0-9]{1,3}/'
    for text, reason in answers(llm, StructuredOutput("grammar", grammar)):
        assert re.fullmatch(r"n = \d{1,3};", text)
        assert reason == "stop"


def test_structural_tags(llm: LLM) -> None:
    """Wherever the trigger comes, and it comes often in what this model writes, a tag follows."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    tag = {"begin": " the[", "schema": schema, "end": "]"}
    structured = StructuredOutput("structural_tag", {"structures": [tag], "triggers": [" the"]})
    seen = 0
    for text, _ in answers(llm, structured, n=16, max_tokens=60):
        _, *rest = text.split(" the")
        for part in rest:
            whole = re.match(r"\[\{\s*\}\]", part)
            seen += whole is not None
            assert whole or text.endswith(part), text
    assert seen


@pytest.mark.parametrize(
    "params",
    [
        {"ignore_eos": True},
        {"min_tokens": 390},
        {"ignore_eos": True, "min_tokens": 390, "repetition_penalty": 1.3, "logprobs": 3},
        {"temperature": 0.0, "n": 1},
        {"top_k": 3, "top_p": 0.8, "min_p": 0.01},
    ],
)
def test_other_parameters_hold_beside_it(llm: LLM, params: dict[str, Any]) -> None:
    """The answer is whole and ends where it must, also where an end is not wished for."""
    for text, reason in answers(llm, StructuredOutput("json_schema", SCHEMA), **params):
        assert reason == "stop"
        assert set(json.loads(text)) == {"name", "age"}


def test_a_stop_string_cuts_it(llm: LLM) -> None:
    for text, reason in answers(llm, StructuredOutput("regex", "[a-c]{5}x"), stop=["x"]):
        assert re.fullmatch("[a-c]{5}", text)
        assert reason == "stop"


def test_one_way_to_go_takes_few_steps_and_changes_nothing(llm: LLM) -> None:
    """A long key is written several tokens at a time; the same text token by token where guesses are not taken."""
    schema = {"type": "object", "properties": {"a_long_name_of_a_property": {"enum": ["x", "y"]}},
              "required": ["a_long_name_of_a_property"], "additionalProperties": False}  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=100)
    before = llm.counters().steps
    (output,) = llm.generate("Once", params, structured=StructuredOutput("json_schema", schema))
    steps = llm.counters().steps - before
    assert steps < len(output.outputs[0].token_ids)
    with LLM(demo.model_directory(), max_model_len=512, max_chunk_tokens=1) as slow:
        (other,) = slow.generate("Once", params, structured=StructuredOutput("json_schema", schema))
    assert output.outputs == other.outputs


def test_what_cannot_be_compiled_is_refused_before_anything_runs(llm: LLM) -> None:
    before = llm.counters()
    for value, said in (({"uniqueItems": True}, "uniqueItems"), ({"allOf": [{"$ref": "#"}]}, "no text matches")):
        with pytest.raises(GrammarError, match=said):
            llm.generate("Once", structured=StructuredOutput("json_schema", value))
    assert llm.counters() == before


def test_streams_and_chats_have_it_too(llm: LLM) -> None:
    structured = StructuredOutput("choice", ["yes", "no"])
    pieces = list(llm.stream("Once", SamplingParams(seed=1), structured=structured))
    assert "".join(piece.text for piece in pieces) in ("yes", "no")
    assert pieces[-1].finish_reason == "stop"
