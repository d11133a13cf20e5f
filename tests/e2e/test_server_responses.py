# SPDX-License-Identifier: Apache-2.0
"""/v1/responses with the official client, /v1/score and /v1/rerank, and the OpenAPI document."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from serving import NAME, Running, digest_model
from tiny_llama import write_tiny_llama

from linnet.api import LLM

MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
KEY = "a-secret-key-of-mine"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=512)) as running:
        yield running
        running.wait_settled()


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


def test_an_answer_is_that_of_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=9, temperature=0)
    found = client.responses.create(model=NAME, input=MESSAGES, max_output_tokens=9, temperature=0)
    assert found.output_text == chat.choices[0].message.content
    assert found.object == "response"
    assert (found.status, found.incomplete_details is not None) == ("incomplete", True)
    assert found.usage is not None
    assert chat.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        chat.usage.prompt_tokens, chat.usage.completion_tokens
    )  # fmt: skip
    with_instructions = client.responses.create(
        model=NAME, instructions="Be brief.", input="Who are you?", max_output_tokens=9, temperature=0
    )
    assert with_instructions.output_text == found.output_text


@pytest.mark.parametrize("more", [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}], ids=str)
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, more: dict[str, Any]) -> None:
    given: dict[str, Any] = {"model": NAME, "input": MESSAGES, "max_output_tokens": 9, "temperature": 0, **more}
    whole = client.responses.create(**given)
    events = list(client.responses.create(**given, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.incomplete"]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].response.output_text == text
    assert events[-1].response.usage == whole.usage
    mine, others = whole.output[0].content[0], events[-1].response.output[0].content[0]
    assert len(mine.logprobs or ()) == (9 if more else 0)
    assert others.logprobs == mine.logprobs


def test_the_clients_own_stream_reads_it(client: openai.OpenAI) -> None:
    with client.responses.stream(model=NAME, input="Who are you?", max_output_tokens=6) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert texts
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_what_was_received_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.responses.create(model=NAME, input=MESSAGES, max_output_tokens=6, temperature=0)
    items = [*MESSAGES, *(item.model_dump() for item in first.output), {"role": "user", "content": "And?"}]
    second = client.responses.create(model=NAME, input=items, max_output_tokens=6, temperature=0)
    turns = [*MESSAGES, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And?"}]
    chat = client.chat.completions.create(model=NAME, messages=turns, max_tokens=6, temperature=0)
    assert second.output_text == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
def test_errors_name_what_this_request_calls_it(server: Running, change: dict[str, Any], param: str) -> None:
    response = server.http.post("/v1/responses", json={"model": NAME, "input": "x", **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_tiny_llama(tmp_path_factory.mktemp("model"))
    with LLM(path, max_model_len=128, num_blocks=64) as llm, Running(llm) as running:
        yield running


def test_scores_are_cosines_of_embeddings(embedding: Running) -> None:
    texts = ["the rain", "the cat", "a hat in the rain"]
    body = {"model": NAME, "input": texts}
    vectors = [np.array(one["embedding"]) for one in embedding.http.post("/v1/embeddings", json=body).json()["data"]]
    body = {"model": NAME, "text_1": texts[0], "text_2": texts[1:]}
    answer = embedding.http.post("/v1/score", json=body).json()
    assert [one["score"] for one in answer["data"]] == pytest.approx([vectors[0] @ vectors[1], vectors[0] @ vectors[2]])
    pairs = embedding.http.post("/v1/score", json={"model": NAME, "text_1": texts, "text_2": texts}).json()
    assert [one["score"] for one in pairs["data"]] == pytest.approx([1.0] * 3)
    documents = [texts[1], {"text": texts[2]}, texts[0]]
    ranked = embedding.http.post("/v1/rerank", json={"model": NAME, "query": texts[0], "documents": documents}).json()
    assert ranked["results"][0] == {
        "index": 2, "relevance_score": pytest.approx(1.0), "document": {"text": "the rain"}
    }  # fmt: skip
    scores = [one["relevance_score"] for one in ranked["results"]]
    assert scores == sorted(scores, reverse=True)
    top = {"model": NAME, "query": texts[0], "documents": documents, "top_n": 1, "return_documents": False}
    assert embedding.http.post("/v1/rerank", json=top).json()["results"] == [
        {"index": 2, "relevance_score": pytest.approx(1.0)}
    ]


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b", ""]}, "text_2[1]"),
        ("/v1/score", {"text_1": 5, "text_2": "a"}, "text_1.str"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"txt": "a"}]}, "documents[0]"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
    ],
    ids=str,
)
def test_wrong_texts_are_named(embedding: Running, route: str, body: dict[str, Any], param: str) -> None:
    response = embedding.http.post(route, json={"model": NAME, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_every_route_is_in_the_document_which_needs_the_key() -> None:
    with Running(digest_model(), keys=(KEY,)) as server:
        assert server.http.get("/openapi.json").status_code == 401
        found = server.http.get("/openapi.json", headers=server.headers).json()
        assert found["openapi"].startswith("3.")
        assert server.server is not None
        routes = {
            (route.path.replace(":path", ""), method.lower())
            for route in server.server.app._app.routes  # type: ignore[attr-defined]
            for method in route.methods
        }
        assert {(path, method) for path, methods in found["paths"].items() for method in methods} == routes
        body = found["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        record = found["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
        assert {"prompt", "model", "max_tokens", "logit_bias"} <= set(record["properties"])
        assert record["additionalProperties"] is False
