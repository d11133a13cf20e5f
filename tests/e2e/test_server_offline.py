# SPDX-License-Identifier: Apache-2.0
"""The server and LLM.generate are one engine: same tokens, texts and log-probabilities, bit for bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serving import NAME, Running
from tiny_llama import write_tiny_llama

from linnet.api import ENGINE_MODULE, LLM, EngineSettings, Opening, SamplingParams, begin_opening, open_in_process
from linnet.child_process import start_child

PROMPTS = ["the rain in a hat", "é 😀 on", "a", "in the the the the the the"]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 24},
    {"temperature": 0.9, "seed": 17, "max_tokens": 24, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.2, "seed": 3, "max_tokens": 16, "n": 3, "min_p": 0.01, "stop": ["e", "qu"]},
    {"temperature": 0.7, "seed": 5, "max_tokens": 12, "logprobs": 3, "repetition_penalty": 1.2},
    {"temperature": 0.7, "seed": 6, "max_tokens": 12, "presence_penalty": 0.5, "frequency_penalty": 0.5},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["thread", "process"])
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[Running]:
    settings = EngineSettings(kv_bytes=1 << 20, max_sequences=16, check=True)
    with ExitStack() as stack:
        if request.param == "thread":
            model = stack.enter_context(LLM(directory, engine=settings)).served()
        else:
            opening = Opening(path=directory, engine=settings)
            model = open_in_process(opening, begin_opening(opening, start_child(ENGINE_MODULE)))
        running = stack.enter_context(Running(model))
        yield running
        running.wait_settled()


def test_the_same_tokens_as_offline(directory: Path, server: Running) -> None:
    with LLM(directory, kv_bytes=1 << 20, max_sequences=16) as llm:
        assert llm.numerics_id == server.llm.numerics_id
        for setting in SETTINGS:
            offline = llm.generate(PROMPTS, SamplingParams(**setting))
            body = {"model": NAME, "prompt": PROMPTS, "return_token_ids": True, **setting}
            answer = server.http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            choices = answer.json()["choices"]
            expected = [output for request in offline for output in request.outputs]
            assert len(choices) == len(expected)
            for choice, output in zip(choices, expected, strict=True):
                assert tuple(choice["token_ids"]) == output.token_ids
                assert choice["text"] == output.text
                assert choice["finish_reason"] == output.finish_reason
                assert choice["stop_reason"] == output.stop_reason
                if output.logprobs is not None:
                    assert choice["logprobs"]["token_logprobs"] == [entry.logprob for entry in output.logprobs]
                    for shown, entry in zip(choice["logprobs"]["top_logprobs"], output.logprobs, strict=True):
                        assert max(shown.values()) == entry.top[0][1]


def test_the_same_chat_as_offline(directory: Path, server: Running) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you? 😀"}]
    with LLM(directory, kv_bytes=1 << 20) as llm:
        offline = llm.chat(messages, SamplingParams(temperature=0.8, seed=4, max_tokens=20, logprobs=2))[0]
    body = {"model": NAME, "messages": messages, "temperature": 0.8, "seed": 4, "max_tokens": 20, "logprobs": True,
            "top_logprobs": 2}  # fmt: skip
    answer = server.http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == offline.outputs[0].text
    assert answer["usage"]["prompt_tokens"] == len(offline.prompt_token_ids)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == [one.logprob for one in offline.outputs[0].logprobs or ()]


def test_an_echo_scores_the_prompt_as_offline(directory: Path, server: Running) -> None:
    ids = server.llm.tokenizer.encode(PROMPTS[0] * 5)
    with LLM(directory, kv_bytes=1 << 20) as llm:
        scores = llm.score([ids])[0]
    body = {"model": NAME, "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    for _ in range(2):  # the second time the prefix is cached
        logprobs = server.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"] == [None, *scores.tolist()]
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_sixteen_clients_get_what_each_gets_alone(server: Running) -> None:
    bodies = [
        {"model": NAME, "prompt": PROMPTS[index % 4] * (1 + index % 5), "seed": index, "max_tokens": 4 + index % 13,
         "logprobs": 2}
        for index in range(32)
    ]  # fmt: skip

    def choices(body: dict[str, Any]) -> Any:
        response = server.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    alone = [choices(body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(choices, bodies)) == alone
