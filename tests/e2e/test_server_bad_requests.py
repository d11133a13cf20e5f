# SPDX-License-Identifier: Apache-2.0
"""Requests that are wrong: the status, the error object and the named parameter; and nothing stays behind."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import NAME, Running, digest_model

from linnet.serve import RequestLimits
from linnet.text import ChatTemplates

JSON = {"Content-Type": "application/json"}
DEEP = b'{"model": "tiny", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = RequestLimits(body_bytes=64 << 10, prompts=32, body_s=1.0)
    with Running(digest_model(), limits=limits) as running:
        yield running
        running.wait_settled()


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def refused(response: httpx.Response, status: int = 400, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert response.headers["x-should-retry"] == ("true" if status in (429, 503) else "false")
    assert response.headers["x-request-id"]
    if param is not None:
        assert error["param"] == param, error
    return error


BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "text": b'"x"',
    "number": b"1",
    "cut": b'{"model": "tiny", "prompt": "x"',
    "trailing": b'{"model": "tiny", "prompt": "x"} x',
    "nan": b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
    "infinity": b'{"model": "tiny", "prompt": "x", "temperature": Infinity}',
    "minus infinity": b'{"model": "tiny", "prompt": "x", "temperature": -Infinity}',
    "1e400": b'{"model": "tiny", "prompt": "x", "temperature": 1e400}',
    "huge integer": b'{"model": "tiny", "prompt": "x", "n": ' + b"9" * 5000 + b"}",
    "twice": b'{"model": "tiny", "prompt": "x", "prompt": "y"}',
    "twice inside": b'{"model": "tiny", "prompt": "x", "logit_bias": {"1": 1, "1": 2}}',
    "not utf-8": b'{"model": "tiny", "prompt": "\xff\xfe"}',
    "overlong utf-8": b'{"model": "tiny", "prompt": "\xc0\xaf"}',
    "surrogate": b'{"model": "tiny", "prompt": "\\ud800"}',
    "surrogate key": b'{"model": "tiny", "prompt": "x", "\\udfff": 1}',
    "swapped pair": b'{"model": "tiny", "prompt": "\\udc00\\ud800"}',
    "deep": DEEP,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep unclosed": b"[" * 60_000,
    "comment": b'{"model": "tiny", /* */ "prompt": "x"}',
    "bom": b'\xef\xbb\xbf{"model": "tiny", "prompt": "x"}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    "route", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
)
def test_bad_bodies(http: httpx.Client, route: str, name: str) -> None:
    refused(http.post(route, content=BODIES[name], headers=JSON))


def test_nul_and_a_pair_of_surrogates_are_characters(http: httpx.Client) -> None:
    body = b'{"model": "tiny", "prompt": "\\u0000 \\ud83d\\ude00", "max_tokens": 1}'
    assert http.post("/v1/completions", content=body, headers=JSON).status_code == 200


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": None}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": {}}, "prompt"),
    ("/v1/completions", {"prompt": [[]]}, "prompt"),
    ("/v1/completions", {"prompt": ["x", ""]}, "prompt[1]"),
    ("/v1/completions", {"prompt": [1, "x"]}, "prompt"),
    ("/v1/completions", {"prompt": ["x", 1]}, "prompt[1]"),
    ("/v1/completions", {"prompt": [1, -1]}, "prompt"),
    ("/v1/completions", {"prompt": [[1], [10**9]]}, "prompt[1]"),
    ("/v1/completions", {"prompt": [True]}, "prompt"),
    ("/v1/completions", {"prompt": ["x"] * 33}, "prompt"),
    ("/v1/completions", {"prompt": [1] * 256}, "prompt"),
    ("/v1/completions", {"prompt": [1] * 250, "max_tokens": 7}, "max_tokens"),
    ("/v1/completions", {"model": 5}, "model"),
    ("/v1/completions", {"n": 129}, "n"),
    ("/v1/completions", {"n": 10**12}, "n"),
    ("/v1/completions", {"best_of": 129}, "best_of"),
    ("/v1/completions", {"best_of": 1, "n": 2}, "best_of"),
    ("/v1/completions", {"best_of": 2, "stream": True}, "best_of"),
    ("/v1/completions", {"priority": 1}, "priority"),
    ("/v1/completions", {"max_tokens": 16.5}, "max_tokens"),
    ("/v1/completions", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ("/v1/completions", {"truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
    ("/v1/completions", {"prompt_logprobs": 21}, "prompt_logprobs"),
    ("/v1/completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ("/v1/completions", {"bad_words": ["several words at once"]}, "bad_words[0]"),
    ("/v1/completions", {"mirostat": 2}, "mirostat"),
    ("/v1/completions", {"repeat_penalty": 1.1}, "repeat_penalty"),
    ("/v1/completions", {"allowed_token_ids": [5]}, "allowed_token_ids"),
    ("/v1/chat/completions", {"reasoning_effort": "high"}, "reasoning_effort"),
    ("/v1/completions", {"early_stopping": "always"}, "early_stopping"),
    ("/v1/completions", {"use_beam_search": True, "n": 100}, "n"),
    ("/v1/completions", {"use_beam_search": True, "presence_penalty": 1}, "presence_penalty"),
    ("/v1/completions", {"use_beam_search": True, "logit_bias": {"1": 1}}, "logit_bias"),
    ("/v1/completions", {"suffix": "end"}, "suffix"),
    ("/v1/completions", {"logprobs": 21}, "logprobs"),
    ("/v1/completions", {"logprobs": True}, "logprobs"),
    ("/v1/completions", {"stop": ["x"] * 17}, "stop"),
    ("/v1/completions", {"stop": [""]}, "stop"),
    ("/v1/completions", {"stop": [1]}, "stop"),
    ("/v1/completions", {"stop_token_ids": [10**6]}, "stop_token_ids"),
    ("/v1/completions", {"stop_token_ids": ["1"]}, "stop_token_ids"),
    ("/v1/completions", {"logit_bias": {"x": 1}}, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"1": "1"}}, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"999999": 1}}, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"-1": 1}}, "logit_bias"),
    ("/v1/completions", {"max_tokens": 0}, "max_tokens"),
    ("/v1/completions", {"min_tokens": 17}, "min_tokens"),
    ("/v1/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("/v1/completions", {"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
    ("/v1/completions", {"stream": 1}, "stream"),
    ("/v1/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
    ("/v1/completions", {"mdoel": "x"}, "mdoel"),
    ("/v1/completions", {"timeout_s": 0}, "timeout_s"),
    ("/v1/completions", {"metadata": {"a": 1}}, "metadata.a"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": "x"}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0].type"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
    ("/v1/chat/completions", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice"),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("/v1/chat/completions", {"top_logprobs": 3}, "top_logprobs"),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ("/v1/chat/completions", {"logprobs": 1}, "logprobs"),
    ("/v1/chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens"),
    ("/v1/chat/completions", {"max_completion_tokens": 256}, "max_completion_tokens"),
    ("/v1/chat/completions", {"chat_template": "{{ 1 }}"}, "chat_template"),
    ("/v1/chat/completions", {"audio": {}}, "audio"),
    ("/v1/chat/completions", {"continue_final_message": True, "add_generation_prompt": True},
     "continue_final_message"),
    ("/tokenize", {"prompt": None}, "prompt"),
    ("/tokenize", {"messages": [{"role": "user", "content": "x"}]}, "prompt"),
    ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "change", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_parameters_are_named(http: httpx.Client, route: str, change: dict[str, Any], param: str) -> None:
    base: dict[str, Any] = {"model": NAME}
    if route == "/v1/chat/completions":
        base |= {"messages": [{"role": "user", "content": "x"}]}
    elif route == "/detokenize":
        base |= {"tokens": [1]}
    else:
        base |= {"prompt": "x"}
    error = refused(http.post(route, json=base | change), param=param)
    assert error["param"] in error["message"] or error["code"] in ("context_length_exceeded", "invalid_type"), error


def test_the_body_limit_counts_declared_and_chunked_bytes(http: httpx.Client, server: Running) -> None:
    large = json.dumps({"model": NAME, "prompt": "x" * (70 << 10)}).encode()
    assert refused(http.post("/v1/completions", content=large, headers=JSON), 413)["code"] == "request_too_large"

    def parts() -> Iterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    refused(http.post("/v1/completions", content=parts(), headers=JSON), 413)
    server.wait_settled()


def test_a_body_that_does_not_arrive_ends_in_408(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        link.sendall(b"Content-Length: 100\r\n\r\n{")
        assert link.recv(4096).startswith(b"HTTP/1.1 408 ")
    server.wait_settled()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types_are_415(http: httpx.Client, headers: dict[str, str]) -> None:
    refused(http.post("/v1/completions", content=b"{}", headers=headers), 415)


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/v1", "/v1/", "/v1/models/", "//v1/models", "/v1//models", "/V1/models", "/docs",
     "/v1/models/%2e%2e%2fetc%2fpasswd", "/metrics/", "/health/"],
)  # fmt: skip
def test_unknown_addresses_are_404(http: httpx.Client, path: str) -> None:
    refused(http.get(path), 404)


def test_other_methods_are_405(http: httpx.Client) -> None:
    assert http.get("/v1/completions").status_code == 405
    assert http.delete("/v1/models").status_code == 405
    assert http.request("OPTIONS", "/v1/completions").status_code == 405


def test_bytes_that_are_not_http_get_a_400_and_huge_headers_too(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20),
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]
    for raw in garbage:
        with socket.create_connection((host, int(port)), timeout=10) as link:
            try:
                link.sendall(raw)
                answer = link.recv(4096)
            except ConnectionResetError:
                continue
            assert answer == b"" or answer.split(b" ")[1][:1] == b"4", raw[:60]
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_template_that_does_not_compile_is_named() -> None:
    model = digest_model()
    model.tokenizer.templates = ChatTemplates({"default": "fine\n{% if %}"}, where="/private/model")
    chat = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    with Running(model) as running:
        for path in ("/v1/chat/completions", "/tokenize"):
            error = refused(running.http.post(path, json=chat), 500, "messages")
            assert error["code"] == "chat_template_error"
            assert "the model cannot chat: its chat template 'default', line 2, does not compile" in error["message"]
            assert "private" not in error["message"]
        plain = {"model": NAME, "prompt": "the", "max_tokens": 2}
        assert running.http.post("/v1/completions", json=plain).status_code == 200
