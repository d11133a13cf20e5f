# SPDX-License-Identifier: Apache-2.0
"""Every way in which a request can end, as a client is told: each has a reason of its own. The moderation hook is in
test_server_moderation.py."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import LONG, Running, digest_model, events, eventually

EOS = 2
"""The tiny tokenizer's; a word that the digest model says early is found by asking it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(max_sequences=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def at_peace(server: Running) -> Iterator[None]:
    server.llm.executable.delay_s = 0.0
    yield
    server.llm.executable.delay_s = 0.0
    server.wait_settled()


def both(server: Running, body: dict[str, Any]) -> tuple[str, str, Any]:
    """Text, finish reason and stop reason of an answer, which are the same streamed and whole."""
    choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    pieces = events(server.http.post("/v1/completions", json=body | {"stream": True}))
    assert pieces.pop() == "[DONE]"
    whole = choice["text"], choice["finish_reason"], choice["stop_reason"]
    last = pieces[-1]["choices"][0]
    assert ("".join(one["choices"][0]["text"] for one in pieces), last["finish_reason"], last["stop_reason"]) == whole
    return whole


def failing(server: Running, body: dict[str, Any]) -> tuple[int, str]:
    """Status and code."""
    answer = server.http.post("/v1/completions", json=body)
    return answer.status_code, answer.json()["error"]["code"]


def test_length(server: Running) -> None:
    assert both(server, LONG | {"max_tokens": 5})[1:] == ("length", None)


def test_the_end_of_the_text(server: Running) -> None:
    body = LONG | {"ignore_eos": False, "min_tokens": 3, "logit_bias": {str(EOS): 100}}
    assert both(server, body)[1:] == ("stop", EOS)
    assert both(server, body | {"ignore_eos": True, "max_tokens": 5})[1:] == ("length", None)


def test_a_stop_token(server: Running) -> None:
    ids = server.http.post("/v1/completions", json=LONG | {"return_token_ids": True}).json()["choices"][0]["token_ids"]
    assert both(server, LONG | {"stop_token_ids": [ids[3]]})[1:] == ("stop", ids[3])


def test_a_stop_word(server: Running) -> None:
    text = both(server, LONG)[0]
    word = text[10:13]
    assert both(server, LONG | {"stop": [word]}) == (text[: text.index(word)], "stop", word)


def test_a_deadline_while_it_is_computed(server: Running) -> None:
    server.llm.executable.delay_s = 0.02
    assert failing(server, LONG | {"timeout_s": 0.2}) == (504, "timeout")
    assert server.metric("request_success_total", finished_reason="timeout") == 1


def test_a_deadline_while_it_waits(server: Running) -> None:
    server.llm.executable.delay_s = 0.02
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(both, server, LONG | {"max_tokens": 50})
        eventually(lambda: server.metric("num_requests_running") == 1)
        assert failing(server, LONG | {"timeout_s": 0.2}) == (504, "queue_timeout")
        server.llm.executable.delay_s = 0.0
        first.result()
    assert server.metric("request_success_total", finished_reason="queue_timeout") == 1


def test_a_client_that_leaves(server: Running) -> None:
    server.llm.executable.delay_s = 0.02
    with server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        next(response.iter_lines())
    eventually(lambda: server.metric("request_success_total", finished_reason="abort") == 1)


@pytest.mark.parametrize(
    ("change", "param"),
    [({"temperature": -1}, "temperature"), ({"max_tokens": 10**6}, "max_tokens"), ({"prompt": ""}, "prompt")],
)
def test_parameters_that_cannot_be(server: Running, change: dict[str, Any], param: str) -> None:
    answer = server.http.post("/v1/completions", json=LONG | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_cache_that_is_too_short() -> None:
    """Refused before it waits: no waiting would help."""
    with Running(digest_model(num_blocks=8, block_size=4)) as server:
        answer = server.http.post("/v1/completions", json=LONG)
        assert answer.status_code == 400
        assert "the whole KV cache has 32" in answer.json()["error"]["message"]
        assert both(server, LONG | {"max_tokens": 5})[1] == "length"
        server.wait_settled()


def test_the_server_ends() -> None:
    model = digest_model()
    with Running(model, shutdown_s=0.0) as server:
        model.executable.delay_s = 0.05
        with server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal()
            rest = list(lines)
    assert "event: error" in rest
    assert any("shutting down" in line for line in rest)
    assert "data: [DONE]" not in rest
