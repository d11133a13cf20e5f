# SPDX-License-Identifier: Apache-2.0
"""Random bodies and random bytes: never a 5xx, never a hang, never a lost block; a good request still answers.

LINNET_FUZZ_CASES sets how many bodies (default 400), LINNET_FUZZ_SEED the seed; a failure prints both.
"""

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mutated import mutated
from serving import NAME, Running, digest_model, events, eventually

from linnet.serve import RequestLimits, connection
from linnet.serve.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest

pytestmark = pytest.mark.alone
CASES = int(os.environ.get("LINNET_FUZZ_CASES", "400"))
SEED = int(os.environ.get("LINNET_FUZZ_SEED", "20261120"))
ROUTES: dict[str, Any] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
GOOD: dict[str, list[Any]] = {
    "input": ["the rain", [5, 6], ["a", "b"]],
    "model": [NAME], "prompt": ["the rain", [5, 6, 7], ["a", "b"], [[5], [6]]], "n": [1, 2], "max_tokens": [1, 4],
    "messages": [[{"role": "user", "content": "x"}]], "temperature": [0, 0.7, 2], "stream": [True, False],
    "stop": ["e", ["e", "x"]], "logprobs": [0, 2, True], "echo": [True, False], "seed": [0, -1, 2**63],
    "logit_bias": [{"5": 1}, {}], "tokens": [[1, 2]], "top_logprobs": [0, 3], "stream_options": [{}],
    "min_tokens": [0, 2], "timeout_s": [5], "chat_template_kwargs": [{"x": 1}], "top_p": [0.5], "top_k": [0, 3],
    "use_beam_search": [True, False], "early_stopping": [True, False, "never"], "length_penalty": [0, 1.5],
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.0, 1e308, 5e-324, "", "1", "\x00", "😀" * 50,
    "{{ 7*7 }}", "<|im_end|>", [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": []}}, ["x"] * 40, [0] * 300, [10**9],
    [-1], [1.5], "‮", "a" * 5000, {"type": "text"}, {"role": "user"}, [{"role": "user", "content": None}],
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=512), limits=RequestLimits(body_bytes=256 << 10)) as running:
        yield running
        running.wait_settled()


def random_body(rng: random.Random, record: Any) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name, field in record.model_fields.items():
        if field.is_required() or name in ("prompt", "max_tokens") or rng.random() < 0.15:
            body[name] = rng.choice(GOOD.get(name, ODD))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        name = rng.choice([*record.model_fields, *record.REFUSED, "unknown", "", "prompt", "messages"])
        body[name] = rng.choice(ODD)
    if rng.random() < 0.05:
        body.pop(rng.choice(list(body)), None)
    return body


def test_random_bodies(server: Running) -> None:
    rng = random.Random(SEED)
    counts: dict[int, int] = {}
    for case in range(CASES):
        route = rng.choice(list(ROUTES))
        body = random_body(rng, ROUTES[route])
        what = f"seed {SEED}, case {case}: {route} {json.dumps(body)[:500]}"
        began_s = time.monotonic()
        response = server.http.post(route, json=body, timeout=10)
        assert time.monotonic() - began_s < 10, what
        counts[response.status_code] = counts.get(response.status_code, 0) + 1
        assert response.status_code in (200, 400, 404), f"{what}: {response.status_code} {response.text[:300]}"
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["message"], what
            assert error["param"] is not None, what
        elif body.get("stream"):
            assert response.text.endswith("data: [DONE]\n\n"), what
    assert min(counts.get(200, 0), counts.get(400, 0)) > CASES // 20, counts
    server.wait_settled()


def test_random_bytes_in_place_of_http(server: Running) -> None:
    rng = random.Random(SEED + 1)
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps({"model": NAME, "prompt": "the rain", "max_tokens": 2}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    statuses: set[int] = set()
    plain = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    for case in range(min(CASES // 4, 1000)):
        raw = mutated(rng, plain, times=rng.choice([1, 1, 2, 5, 20]), longest_copy=60)
        with socket.create_connection((host, int(port)), timeout=3) as link:
            link.sendall(raw)
            link.settimeout(0.2)  # what waits for more bytes is left to wait
            answer = b""
            try:
                while part := link.recv(65536):
                    answer += part
            except (ConnectionResetError, TimeoutError):
                pass
        if answer:
            status = int(answer.split(b" ", 2)[1])
            statuses.add(status)
            assert status < 500 or status == 503, f"seed {SEED}, case {case}: {raw!r} -> {answer[:200]!r}"
    assert len(statuses & {200, 400, 403, 404, 405, 415}) >= 4
    server.wait_settled(5.0)
    assert server.http.post("/v1/completions", json=json.loads(content)).status_code == 200


def test_slow_heads_and_stuck_readers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    monkeypatch.setattr(connection, "STUCK_S", 0.3)
    model = digest_model(num_blocks=512)
    with Running(model) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for start in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
            with socket.create_connection((host, int(port)), timeout=5) as link:
                link.sendall(start)
                assert link.recv(100) == b""
        with socket.create_connection((host, int(port)), timeout=5) as link:
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += link.recv(1000)
            link.sendall(b"GET /hea")  # a connection that was used before is no exception
            assert link.recv(100) == b""
        body = {"model": NAME, "prompt": ["the"] * 64, "max_tokens": 240, "stream": True, "logprobs": 20,
                "ignore_eos": True}  # fmt: skip
        content = json.dumps(body).encode()
        model.executable.delay_s = 0.01  # who is cut off must still be waiting for tokens
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect((host, int(port)))
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            link.sendall(f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            eventually(lambda: not server.settled())  # before it is taken there is nothing to cut off
            server.wait_settled(30.0)
        assert server.metric("requests_aborted_total") == 1


def test_health_answers_while_large_bodies_are_judged() -> None:
    """Parsing, validating and tokenising happen beside the event loop."""
    bodies = [
        b'{"model": "tiny", "prompt": "' + b"the rain " * 7000 + b'"}',
        b'{"model": "tiny", "prompt": [' + b"5," * (1 << 20) + b"5]}",
        b"[" * (4 << 20),
        b'"' * (4 << 20),
        json.dumps({"model": NAME, "messages": [{"role": "user", "content": "x" * 1000}] * 1000}).encode(),
    ]
    headers = {"Content-Type": "application/json"}
    with Running(digest_model(num_blocks=512)) as server:
        times: list[float] = []

        def send(body: bytes) -> int:
            route = "/v1/chat/completions" if b"messages" in body else "/v1/completions"
            return server.http.post(route, content=body, headers=headers).status_code

        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send, body) for body in bodies * 2]
            with server.client() as http:
                while not all(one.done() for one in sent):
                    began_s = time.monotonic()
                    assert http.get("/health").status_code == 200
                    times.append(time.monotonic() - began_s)
        assert {one.result() for one in sent} == {400}
        # The bar of a release is 0.1 s at the 99th percentile on an idle machine; here client and server share a
        # process and the machine may be busy.
        assert max(times) < 3.0


def test_a_stream_of_everything_at_once_is_well_formed(server: Running) -> None:
    body = {
        "model": NAME,
        "prompt": ["the rain", [70, 80, 200, 130]],
        "n": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": 3,
        "echo": True,
        "max_tokens": 9,
        "seed": 3,
        "return_token_ids": True,
    }
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        found = events(response)
    assert found[-1] == "[DONE]"
    assert found[-2]["usage"]["completion_tokens"] == sum(
        len(choice["token_ids"]) for chunk in found[:-2] for choice in chunk["choices"]
    )
    assert {choice["index"] for chunk in found[:-2] for choice in chunk["choices"]} == set(range(6))
