# SPDX-License-Identifier: Apache-2.0
"""Structured output over HTTP, in every spelling; streams say what answers say; what cannot be is a 400 with a name."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import NAME, Running, digest_model

MESSAGES: Any = [{"role": "user", "content": "x"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SLOW = {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}$"} for i in range(10, 40)]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(max_model_len=512, num_blocks=1024)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as one:
        yield one


def is_object(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"a", "b"} and found["a"] in ("x", "yy") and 0 <= found["b"] <= 99


def fits(pattern: str) -> Any:
    return re.compile(pattern).fullmatch


SPELLINGS: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, is_object),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
     is_object),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, is_object),
    ({"guided_json": SCHEMA}, is_object),
    ({"guided_json": json.dumps(SCHEMA)}, is_object),
    ({"json_schema": SCHEMA}, is_object),
    ({"structured_outputs": {"json": SCHEMA}}, is_object),
    ({"structured_outputs": {"regex": "[ab]{4}", "json": None, "json_object": False}}, fits("[ab]{4}")),
    ({"guided_regex": "[ab]{4}"}, fits("[ab]{4}")),
    ({"guided_choice": ["one", "two"]}, fits("one|two")),
    ({"structured_outputs": {"choice": ["one", "two"]}}, fits("one|two")),
    ({"guided_grammar": 'start: "n" /[0-9]/'}, fits("n[0-9]")),
    ({"grammar": 'root ::= "n" [0-9]'}, fits("n[0-9]")),
    ({"structured_outputs": {"grammar": 'start: "n" /[0-9]/'}}, fits("n[0-9]")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "is_right"), SPELLINGS, ids=lambda value: str(value)[:60] if isinstance(value, dict) else "answer"
)
def test_every_spelling(client: openai.OpenAI, fields: dict[str, Any], is_right: Any) -> None:
    given = {"model": NAME, "messages": MESSAGES, "max_tokens": 400, "seed": 1, "n": 2, "extra_body": fields}
    whole = client.chat.completions.create(**given)
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        assert is_right(choice.message.content), choice.message.content
    streamed = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**given, stream=True):
        for part in chunk.choices:
            streamed[part.index] += part.delta.content or ""
    assert streamed == {choice.index: choice.message.content for choice in whole.choices}
    completion = client.completions.create(model=NAME, prompt="x", max_tokens=400, extra_body=fields)
    assert is_right(completion.choices[0].text)


def test_any_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=30, response_format={"type": "json_object"}
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_text_and_nothing_change_nothing(client: openai.OpenAI) -> None:
    given = {"model": NAME, "messages": MESSAGES, "max_tokens": 8, "seed": 3}
    plain = client.chat.completions.create(**given).choices[0].message.content
    neutral = {"guided_json": None, "guided_regex": None, "structured_outputs": {"json": None}, "grammar": ""}
    fields: dict[str, Any]
    for fields in ({"response_format": {"type": "text"}}, neutral, {"structured_outputs": {}}):
        assert client.chat.completions.create(**given, extra_body=fields).choices[0].message.content == plain


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


@pytest.mark.parametrize(
    "fields", [{"guided_json": SCHEMA}, {"guided_regex": "[ab]{2,9}c"}], ids=lambda value: str(value)[:20]
)
def test_every_beam_of_a_search_matches(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    is_right = is_object if "guided_json" in fields else fits("[ab]{2,9}c")
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=100, n=4, logprobs=True, top_logprobs=2,
        extra_body={**fields, "use_beam_search": True},
    )  # fmt: skip
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    for choice in answer.choices:
        assert is_right(choice.message.content), choice.message.content
    tokens = [[one.token for one in choice.logprobs.content] for choice in answer.choices if choice.logprobs]
    assert len({tuple(one) for one in tokens}) == 4
    scores = [sum(one.logprob for one in choice.logprobs.content) / len(choice.logprobs.content)
              for choice in answer.choices if choice.logprobs]  # fmt: skip
    assert scores == sorted(scores, reverse=True)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": 5}, "response_format", "object with a type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "accepted: text, json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "with a schema"),
    (schema({"type": "stsring"}), "response_format", "type has 'stsring'"),
    (schema({"type": "string", "pattern": "(a"}), "response_format", "unclosed group"),
    (schema({"uniqueItems": True}), "response_format", "the keyword uniqueItems is not supported"),
    (schema({"$ref": "https://example.org"}), "response_format", r"the keyword \$ref"),
    (schema({"allOf": [{"$ref": "#"}]}), "response_format", "no text matches"),
    (schema({"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}), "response_format", "at most 65536"),
    ({"guided_regex": "(?<=a)b"}, "guided_regex", "look-around"),
    ({"guided_regex": ["a"]}, "guided_regex", "string"),
    ({"guided_choice": []}, "guided_choice", "list of texts"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "cannot both be given"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar", "unknown name"),
    ({"grammar": "root ::= ("}, "grammar", "not understood as GBNF"),
    ({"structured_outputs": {"yaml": 1}}, "structured_outputs.yaml", "accepted: json, json_object"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    ({"guided_json": SLOW}, "guided_json", "takes longer than 1 s|too complex"),
    ({"guided_choice": ["q"], "use_beam_search": True, "n": 3}, "n", "accepted is at most 1: use_beam_search finds no"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "said"), BAD, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=NAME, messages=MESSAGES, max_tokens=8, stream=stream, extra_body=fields
            )
        body: Any = caught.value.body
        assert body["param"] == param
        assert re.search(said, body["message"]), body["message"]
        assert "llguidance" not in body["message"]
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
