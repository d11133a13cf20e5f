# SPDX-License-Identifier: Apache-2.0
"""The official client, strict about every answer, through every parameter that is honoured.

Two things OpenAI's own wire format has and the client's types for legacy completions lack are read without strictness:
``finish_reason: null`` in the chunks of a stream, and the null log-probability of the first token of an echo.
"""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import NAME, Running, digest_model

from linnet.api import SamplingDefaults

PROMPT = "the cat and the hat in the rain"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=512)) as running:
        yield running
        running.wait_settled()


@pytest.fixture(scope="module")
def lenient(server: Running) -> openai.OpenAI:
    return server.openai(strict=False)


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


COMPLETION_PARAMETERS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 1},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    {"n": 3, "seed": 1},
    {"stop": "e"},
    {"stop": ["e", "the"], "seed": 3},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5, "seed": 2},
    {"logit_bias": {"5": -100, "70": 10.5}, "seed": 2},
    {"logprobs": 0, "temperature": 0},
    {"logprobs": 5, "temperature": 0},
    {"echo": True, "temperature": 0},
    {"echo": True, "logprobs": 3, "temperature": 0},
    {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"echo": True, "max_tokens": 0},
    {"best_of": None, "suffix": None, "user": "somebody"},
    {"extra_body": {"top_k": 5, "seed": 1}},
    {"extra_body": {"min_p": 0.2, "seed": 1}},
    {"extra_body": {"repetition_penalty": 1.3, "seed": 1}},
    {"extra_body": {"min_tokens": 4, "seed": 1}, "max_tokens": 6},
    {"extra_body": {"ignore_eos": True, "seed": 1}},
    {"extra_body": {"use_beam_search": True}, "n": 3, "logprobs": 2},
    {"extra_body": {"use_beam_search": True, "length_penalty": 0, "early_stopping": "never"}, "n": 2},
    {"extra_body": {"stop_token_ids": [80, 81, 82], "seed": 1}},
    {"extra_body": {"include_stop_str_in_output": True, "seed": 1}, "stop": ["e"]},
    {"extra_body": {"skip_special_tokens": False, "seed": 1}},
    {"extra_body": {"add_special_tokens": False, "seed": 1}},
    {"extra_body": {"return_token_ids": True, "seed": 1}},
    {"extra_body": {"return_tokens_as_token_ids": True, "seed": 1}, "logprobs": 2},
    {"extra_body": {"timeout_s": 10, "seed": 1, "cache_salt": "mine", "priority": 0}},
    {"extra_headers": {"x-request-timeout": "10"}, "seed": 4},
]


@pytest.mark.parametrize("parameters", COMPLETION_PARAMETERS, ids=str)
def test_completions_stream_as_they_answer(
    client: openai.OpenAI, lenient: openai.OpenAI, parameters: dict[str, Any]
) -> None:
    given = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "seed": 0, **parameters}
    scored_echo = bool(parameters.get("echo") and parameters.get("logprobs") is not None)
    whole = (lenient if scored_echo else client).completions.create(**given)
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    if parameters.get("max_tokens") == 0:
        assert whole.usage.completion_tokens == 0
    chunks = list(lenient.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason
        assert all(part.finish_reason is None for part in parts[:-1])
        if choice.logprobs is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                together = [value for part in parts for value in getattr(part.logprobs, name)]
                assert together == getattr(choice.logprobs, name)


CHAT_PARAMETERS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 3},
    {"max_completion_tokens": 3},
    {"temperature": 0, "logprobs": True},
    {"temperature": 0, "logprobs": True, "top_logprobs": 4},
    {"n": 2, "seed": 9, "temperature": 1.2, "top_p": 0.8},
    {"stop": ["a", "e", "o"]},
    {"presence_penalty": 1, "frequency_penalty": 1},
    {"logit_bias": {"90": 20}},
    {"response_format": {"type": "text"}, "tool_choice": "none", "user": "x", "metadata": {"a": "b"}, "store": False},
    {"service_tier": "auto", "modalities": ["text"], "parallel_tool_calls": False},
    {"extra_body": {"top_k": 3, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True}},
    {"extra_body": {"return_token_ids": True, "skip_special_tokens": False}},
    {"extra_body": {"chat_template_kwargs": {"tokenize": True, "enable_thinking": False}}},
    {"extra_body": {"add_generation_prompt": False}},
    {"extra_body": {"use_beam_search": True, "early_stopping": True}, "n": 2},
]


@pytest.mark.parametrize("parameters", CHAT_PARAMETERS, ids=str)
def test_chats_stream_as_they_answer(client: openai.OpenAI, parameters: dict[str, Any]) -> None:
    limit = {} if {"max_tokens", "max_completion_tokens"} & set(parameters) else {"max_tokens": 8}
    given = {"model": NAME, "messages": MESSAGES, "seed": 0, **limit, **parameters}
    whole = client.chat.completions.create(**given)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            together = [entry for part in parts if part.logprobs for entry in part.logprobs.content or ()]
            assert together == choice.logprobs.content
            assert len(together) == whole.usage.completion_tokens // given.get("n", 1)


def test_prompts_of_every_form_are_one_list_of_choices(client: openai.OpenAI, server: Running) -> None:
    ids = server.llm.tokenizer.encode(PROMPT)
    other = server.llm.tokenizer.encode("in a")

    def texts(prompt: Any) -> list[str]:
        answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    assert texts(ids) == texts(PROMPT) == texts([PROMPT]) == texts([ids])
    assert texts([PROMPT, "in a"]) == texts([ids, other]) == texts(PROMPT) + texts("in a")


def test_a_cached_prefix_is_counted_and_changes_nothing(client: openai.OpenAI) -> None:
    prompt = "a new prompt that nobody has sent before, with a long tail"
    first = client.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0)
    second = client.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0)
    assert first.usage
    assert first.usage.prompt_tokens_details
    assert second.usage
    assert second.usage.prompt_tokens_details
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 0
    assert first.choices[0].text == second.choices[0].text


def test_models_are_listed_and_found_by_exact_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, "other-name"]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../etc/passwd")
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="unknown", prompt="x")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_tokenize_and_detokenize(server: Running) -> None:
    with server.client() as http:
        ids = server.llm.tokenizer.encode(PROMPT)
        answer = http.post("/tokenize", json={"model": NAME, "prompt": PROMPT, "return_token_strs": True}).json()
        assert answer["tokens"] == ids
        assert answer["count"] == len(ids)
        assert answer["max_model_len"] == 256
        assert len(answer["token_strs"]) == len(ids)
        assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": PROMPT}
        chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
        assert http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"].endswith("assistant\n")


def test_request_ids_are_echoed_or_made(server: Running) -> None:
    with server.client() as http:
        assert http.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
        made = http.get("/health", headers={"X-Request-Id": "bad id!"}).headers["x-request-id"]
        assert len(made) == 32


def test_what_a_checkpoint_recommends_holds_where_a_request_says_nothing() -> None:
    model = digest_model(num_blocks=512)
    model.sampling_defaults = SamplingDefaults({"temperature": 0.8, "top_k": 7, "repetition_penalty": 1.2}, 9)
    with Running(model) as running:
        http = running.client()

        def text(route: str, body: dict[str, Any]) -> Any:
            answer = http.post(route, json={"model": NAME, "seed": 3, "ignore_eos": True, **body}).json()
            choice = answer["choices"][0]
            return choice.get("text") or choice["message"]["content"], answer["usage"]["completion_tokens"]

        asked = {"temperature": 0.8, "top_k": 7, "repetition_penalty": 1.2}
        for route, body in (
            ("/v1/completions", {"prompt": PROMPT}),
            ("/v1/chat/completions", {"messages": MESSAGES}),
        ):
            plain = text(route, body)
            assert plain == text(route, body | asked)
            won = text(route, body | {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0})
            assert won != plain
        assert text("/v1/chat/completions", {"messages": MESSAGES})[1] == 9
        assert text("/v1/completions", {"prompt": PROMPT})[1] == 16
        assert text("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 12})[1] == 12
        http.close()


def test_a_chat_without_a_number_ends_at_the_servers_bound() -> None:
    with Running(digest_model(num_blocks=512), default_max_tokens=11) as running, running.client() as http:
        body = {"model": NAME, "messages": MESSAGES, "ignore_eos": True}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 11)
