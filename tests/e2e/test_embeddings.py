# SPDX-License-Identifier: Apache-2.0
"""Embeddings: the same alone and in a batch, in chunks, after preemption, from the prefix cache; and /v1/embeddings."""

import base64
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving import NAME, Running, digest_model, tiny_directory

from linnet import demo
from linnet.api import (
    ENGINE_MODULE,
    LLM,
    Opening,
    ParameterError,
    PreparedPrompt,
    SamplingParams,
    Terms,
    begin_opening,
    open_in_process,
)
from linnet.child_process import start_child
from linnet.errors import ConfigError
from linnet.settings import EngineSettings

POOLINGS = ("last", "mean")


def prompts(count: int, most: int) -> list[list[int]]:
    rng = random.Random(5)
    shared = [rng.randrange(200) for _ in range(40)]
    return [
        [*shared[: rng.randrange(40)], *(rng.randrange(200) for _ in range(rng.randrange(1, most)))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_alone_equals_in_a_batch_whatever_is_done_to_it(policy: Any) -> None:
    """Bit for bit: together, in chunks, with answers beside them, with forced preemption, with known prefixes."""
    model, rows = demo.model_directory(), prompts(12, 80)
    with LLM(model, policy=policy, max_model_len=256, prefix_cache=False, check=True) as llm:
        alone = {pooling: [llm.embed([row], pooling=pooling)[0] for row in rows] for pooling in POOLINGS}
    settings: list[dict[str, Any]] = [{}, {"max_chunk_tokens": 5}, {"preempt_every": 2, "max_chunk_tokens": 9}]
    settings += [{"token_budget": 48, "max_sequences": 3}, {"num_blocks": 16, "block_size": 16}]
    for setting in settings:
        with LLM(model, policy=policy, max_model_len=256, check=True, **setting) as llm:
            for _ in range(2):  # the second time from the prefix cache
                for pooling in POOLINGS:
                    stream = llm.stream(rows[0], SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0))
                    next(stream)
                    found = llm.embed(rows, pooling=pooling)
                    stream.close()
                    for one, wanted in zip(found, alone[pooling], strict=True):
                        assert np.array_equal(one, wanted), (setting, pooling)
            assert llm.counters().used_blocks == 0


def test_what_cannot_be_embedded() -> None:
    with LLM(demo.model_directory(), max_model_len=64) as llm:
        with pytest.raises(ParameterError, match="pooling is 'max'; accepted: last, mean, cls"):
            llm.embed("the cat", pooling="max")  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="the prompt is empty"):
            llm.embed([[]])
        with pytest.raises(ParameterError, match="the context holds 64"):
            llm.embed([[1] * 65])
        assert len(llm.embed([[1] * 64])) == 1  # no room for an answer is needed


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with LLM(tiny_directory(), kv_bytes=1 << 20, check=True) as llm, Running(llm) as running:
        yield running
        running.wait_settled()


def ask(server: Running, **body: Any) -> Any:
    return server.http.post("/v1/embeddings", json={"model": NAME, **body})


@pytest.fixture(scope="module")
def plain() -> Iterator[LLM]:
    with LLM(tiny_directory(), kv_bytes=1 << 20) as llm:
        yield llm


def test_every_form_of_input(server: Running, plain: LLM) -> None:
    texts = ["the rain", "a cat and a dog"]
    ids = [list(plain.tokenizer.encode(text)) for text in texts]
    wanted = plain.embed(texts, normalize=True)
    for given, expected in ((texts[0], wanted[:1]), (texts, wanted), (ids[0], wanted[:1]), (ids, wanted)):
        answer = ask(server, input=given).json()
        assert answer["object"] == "list"
        assert answer["model"] == NAME
        assert [one["index"] for one in answer["data"]] == list(range(len(expected)))
        for one, vector in zip(answer["data"], expected, strict=True):
            assert one["object"] == "embedding"
            assert np.array_equal(np.float32(one["embedding"]), vector)
        tokens = sum(map(len, ids[: len(expected)]))
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_encodings_dimensions_and_pooling(server: Running, plain: LLM) -> None:
    (wanted,) = plain.embed("the rain", pooling="mean", normalize=True)
    text = ask(server, input="the rain", pooling="mean", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), wanted)
    cut = np.float32(ask(server, input="the rain", pooling="mean", dimensions=8).json()["data"][0]["embedding"])
    assert cut.shape == (8,)
    assert np.allclose(cut, wanted[:8] / np.linalg.norm(wanted[:8]), atol=1e-6)


def test_the_official_client(server: Running, plain: LLM) -> None:
    strict = server.openai().embeddings.create(model=NAME, input=["the rain", "x"], encoding_format="float")
    found = server.openai(strict=False).embeddings.create(model=NAME, input=["the rain", "x"])  # it asks for base64
    assert found.data[1].embedding == strict.data[1].embedding
    assert np.allclose(found.data[0].embedding, plain.embed("the rain", normalize=True)[0], atol=1e-7)
    assert found.usage.total_tokens == found.usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], [-1]]}, "input[1]"),
        ({"input": 3}, "input"),
        ({}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 10**6}, "dimensions"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": [[1] * 10000]}, "input"),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], param: str) -> None:
    answer = ask(server, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_model_without_hidden_states_says_so() -> None:
    with Running(digest_model()) as server:
        answer = ask(server, input="the rain")
        assert (answer.status_code, "makes no embeddings" in answer.text) == (400, True)


def test_numbers_arrive_from_another_process(plain: LLM) -> None:
    opening = Opening(path=tiny_directory(), engine=EngineSettings(kv_bytes=1 << 20))
    served = open_in_process(opening, begin_opening(opening, start_child(ENGINE_MODULE)))
    with Running(served) as server:
        (wanted,) = plain.embed("the rain", normalize=True)
        assert np.array_equal(np.float32(ask(server, input="the rain").json()["data"][0]["embedding"]), wanted)


def test_an_embedding_is_not_mixed_with_anything(plain: LLM) -> None:
    (sample,) = plain.requests.embedding([PreparedPrompt(None, (1, 2))], "last", Terms())
    with pytest.raises(ConfigError, match="comes alone"):
        plain.facts.validate(replace(sample.submit, max_tokens=3))
