# SPDX-License-Identifier: Apache-2.0
"""What a server does under load and under bad luck: clients that leave, full queues, deadlines, aborts.

One oracle after each: the process is alive, health is truthful, every block and place is back, and a request repeated
alone gives the same tokens.
"""

import asyncio
import gc
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from serving import LONG, NAME, Running, digest_model, events, eventually, text_of

from linnet.process_memory import resident_bytes
from linnet.serve.bridge import Job

pytestmark = pytest.mark.alone
SOAK = int(os.environ.get("LINNET_SOAK_REQUESTS", "2000"))
GROWTH_BYTES = 1024
"""Of resident memory a request may cost in the second half of a soak."""
WINDOWS = 5
"""Of the second half. What a request leaves behind shows in each; what an allocator takes once, in one."""


@pytest.fixture
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=256)) as running:
        yield running
        running.llm.executable.delay_s = 0.0
        running.wait_settled()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_ends_its_request_within_a_step(server: Running, stream: bool, n: int, route: str) -> None:
    server.llm.executable.delay_s = 0.02
    body: dict[str, Any] = {**LONG, "n": n, "stream": stream}
    if "chat" in route:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        eventually(lambda: server.metric("num_requests_running") == n)
        if stream:
            assert link.recv(100).startswith(b"HTTP/1.1 200")
    left_s = time.monotonic()
    steps = server.llm.counters().steps
    eventually(lambda: server.llm.counters().running_requests == 0, 2.0)
    assert time.monotonic() - left_s < 2.0  # the promise is a step and 0.1 s; test machines may be busy
    assert server.llm.counters().steps - steps <= 10
    server.wait_settled()
    assert server.metric("requests_aborted_total") == 1


def test_a_client_that_leaves_while_it_waits_in_the_queue(server: Running) -> None:
    server.llm.executable.delay_s = 0.02
    with ThreadPoolExecutor(20) as pool:
        running = [pool.submit(text_of, server, {**LONG, "max_tokens": 100}) for _ in range(16)]
        eventually(lambda: server.metric("num_requests_running") == 16)
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/completions", json=LONG, timeout=0.3)
        eventually(lambda: server.metric("num_requests_waiting") == 0, 2.0)
        server.llm.executable.delay_s = 0.0
        assert len({one.result() for one in running}) == 1


def test_sixteen_clients_get_what_each_gets_alone(server: Running) -> None:
    rng = random.Random(7)
    words = ["the", "rain", "in", "a", "cat", "and", "hat", "on"]
    bodies = [
        {
            "model": NAME,
            "prompt": " ".join(rng.choices(words, k=rng.randrange(1, 30))),
            "max_tokens": rng.randrange(1, 24),
            "seed": rng.randrange(1000),
            "temperature": rng.choice([0, 0.8, 1.3]),
            "logprobs": rng.choice([None, 2]),
            "n": rng.choice([1, 1, 3]),
            "stop": rng.choice([None, ["e", "th"]]),
        }
        for _ in range(48)
    ]

    def choices(body: dict[str, Any]) -> Any:
        response = server.http.post("/v1/completions", json=body, timeout=20)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    alone = [choices(body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(choices, bodies)) == alone


def test_streams_are_byte_equal_to_answers(server: Running) -> None:
    """Random ids of a byte-level vocabulary: split characters, stop strings across chunks, several samples."""
    rng = random.Random(11)
    for _ in range(40):
        body = {
            "model": NAME,
            "prompt": [rng.randrange(3, 260) for _ in range(rng.randrange(1, 12))],
            "max_tokens": rng.randrange(1, 40),
            "seed": rng.randrange(1 << 30),
            "n": rng.choice([1, 2]),
            "stop": [chr(rng.randrange(97, 123)) for _ in range(rng.choice([0, 0, 1, 3]))] or None,
            "echo": rng.random() < 0.3,
            "temperature": 1.5,
        }
        whole = server.http.post("/v1/completions", json=body).json()["choices"]
        with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            found = events(response)
        assert found[-1] == "[DONE]"
        parts = [choice for chunk in found[:-1] for choice in chunk["choices"]]
        for choice in whole:
            mine = [part for part in parts if part["index"] == choice["index"]]
            assert "".join(part["text"] for part in mine) == choice["text"]
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            assert mine[-1]["stop_reason"] == choice["stop_reason"]


def test_a_full_queue_answers_429_at_once_and_recovers() -> None:
    model = digest_model(num_blocks=256, max_sequences=2, max_waiting_requests=2)
    with Running(model) as server:
        model.executable.delay_s = 0.02
        with ThreadPoolExecutor(8) as pool:
            held = [pool.submit(text_of, server, {**LONG, "max_tokens": 60}) for _ in range(4)]
            eventually(lambda: server.metric("num_requests_waiting") == 2)
            began_s = time.monotonic()
            response = server.http.post("/v1/completions", json=LONG)
            assert time.monotonic() - began_s < 2.0
            assert response.status_code == 429
            assert response.json()["error"]["type"] == "overloaded_error"
            assert response.json()["error"]["code"] == "queue_full"
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert response.headers["x-should-retry"] == "true"
            assert server.http.get("/health").status_code == 200
            model.executable.delay_s = 0.0
            assert len({one.result() for one in held}) == 1
        too_many = server.http.post("/v1/completions", json={**LONG, "n": 5})
        assert too_many.status_code == 400  # no empty queue could hold it
        assert server.metric("requests_rejected_total", reason="requests") >= 1
        server.wait_settled()


def test_the_queue_is_bounded_by_prompt_tokens_and_bytes_too() -> None:
    model = digest_model(num_blocks=256)
    with Running(model, queue_prompt_tokens=60, queue_body_bytes=4096) as server:
        model.executable.delay_s = 0.02
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(text_of, server, {**LONG, "prompt": [5] * 40, "max_tokens": 60})
            eventually(lambda: server.metric("num_requests_running") == 1)
            tokens = server.http.post("/v1/completions", json={**LONG, "prompt": [5] * 40})
            size = server.http.post("/v1/completions", json={**LONG, "user": "x" * 5000})
            model.executable.delay_s = 0.0
            held.result()
        assert (tokens.status_code, size.status_code) == (429, 429)
        assert server.metric("requests_rejected_total", reason="prompt_tokens") == 1
        assert server.metric("requests_rejected_total", reason="body_bytes") == 1
        server.wait_settled()


@pytest.mark.parametrize("how", ["header", "field"])
def test_a_deadline_ends_a_request(server: Running, how: str) -> None:
    server.llm.executable.delay_s = 0.02
    headers = {"x-request-timeout": "0.2"} if how == "header" else {}
    body = LONG if how == "header" else {**LONG, "timeout_s": 0.2}
    response = server.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}, headers=headers) as stream:
        assert stream.status_code == 200
        found = events(stream)
    assert found[-1]["error"]["code"] == "timeout"
    assert "[DONE]" not in found
    for wrong in ("x", "0", "-1", "nan", "inf", "1e99"):
        refused = server.http.post("/v1/completions", json=LONG, headers={"x-request-timeout": wrong})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "x-request-timeout"


def test_silence_is_filled_with_comments() -> None:
    model = digest_model()
    with Running(model, keep_alive_s=0.1) as server:
        model.executable.delay_s = 0.35
        with server.http.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 2, "stream": True}) as one:
            lines = list(one.iter_lines())
        assert ": keep-alive" in lines
        assert lines[-2] == "data: [DONE]"


def test_a_preempted_request_answers_as_if_nothing_had_happened() -> None:
    bodies = [{**LONG, "prompt": f"{'the rain ' * index}x", "max_tokens": 30} for index in range(1, 13)]
    with Running(digest_model(num_blocks=256)) as server:
        calm = [text_of(server, body) for body in bodies]
    with Running(digest_model(num_blocks=66, preempt_every=3)) as server:
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(lambda body: text_of(server, body), bodies)) == calm
        assert server.metric("num_preemptions_total") > 0
        server.wait_settled()


def open_things(server: Running) -> tuple[int, int, int]:
    """File descriptors and threads of the process, tasks of the server's loop."""
    assert server.server is not None
    loop = server.server.bridge.loop
    assert loop is not None
    tasks = asyncio.run_coroutine_threadsafe(_count_tasks(), loop).result(5)
    return len(os.listdir("/proc/self/fd")), threading.active_count(), tasks


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())


def resident_after_collecting() -> int:
    """A process that holds the objects of many tests is seldom collected whole, and what waits for that is no leak."""
    gc.collect()
    return resident_bytes()


def test_aborts_at_random_moments_leave_nothing(server: Running) -> None:
    rng = random.Random(3)
    server.llm.executable.delay_s = 0.002
    alone = text_of(server, {**LONG, "max_tokens": 20})
    each = SOAK // 2 // WINDOWS
    plans = [(rng.choice([0.005, 0.02, 0.05, 5.0]), rng.randrange(0, 40)) for _ in range(SOAK)]

    def one(index: int) -> str | None:
        patience_s, lines = plans[index]
        stream = index % 2 == 0
        body = {**LONG, "max_tokens": 20, "stream": stream, "n": 1 + index % 3}
        limit = httpx.Timeout(5.0, read=patience_s)
        try:
            with server.client() as http, http.stream("POST", "/v1/completions", json=body, timeout=limit) as response:
                if not stream:
                    return str(json.loads(response.read())["choices"][0]["text"])
                for count, _ in enumerate(response.iter_lines()):
                    if count > lines:
                        break
        except httpx.TimeoutException:
            return None
        return None

    def settled_things() -> tuple[int, int, int]:
        server.wait_settled(10.0)
        server.http.close()
        server.__dict__.pop("http")
        time.sleep(0.3)
        return open_things(server)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(min(20, SOAK))))
        before = settled_things()
        results = list(pool.map(one, range(SOAK // 2)))
        sizes = [resident_after_collecting()]
        for window in range(WINDOWS):
            results += pool.map(one, range(SOAK // 2 + window * each, SOAK // 2 + (window + 1) * each))
            sizes.append(resident_after_collecting())
        after = settled_things()
    assert {text for text in results if text is not None} <= {alone}
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)
    steps = sorted(after - before for before, after in pairwise(sizes))
    grown = WINDOWS * steps[WINDOWS // 2]
    assert grown < max(GROWTH_BYTES * SOAK // 2, 4 << 20), f"{steps} bytes more in {each} requests each"
    assert text_of(server, {**LONG, "max_tokens": 20}) == alone


def test_queue_time_and_prompt_tokens_are_counted_for_every_sample() -> None:
    with Running(digest_model()) as server:
        assert server.metric("request_queue_time_seconds_count") == 0
        text_of(server, {**LONG, "prompt": [5, 6, 7], "max_tokens": 2, "n": 2})
        assert server.metric("request_queue_time_seconds_count") == 2
        assert server.metric("prompt_tokens_total") == 6
        text_of(server, {**LONG, "prompt": [5, 6, 7, 8], "max_tokens": 0, "echo": True, "logprobs": 1})
        assert server.metric("request_queue_time_seconds_count") == 3
        assert server.metric("prompt_tokens_total") == 10
        assert server.metric("requests_aborted_total") == 0


def test_a_client_that_leaves_after_its_last_token_is_not_an_abort() -> None:
    with Running(digest_model()) as server:
        assert server.server is not None
        job = Job(server.server.bridge, (), server.server.admission.enter(), 0.0)
        job.leave()
        assert not job.left
        job.close()


@pytest.mark.parametrize(("keep_alive_s", "comments"), [(0.05, True), (0.0, False)])
def test_a_silent_stream_gets_comments_unless_they_are_off(keep_alive_s: float, comments: bool) -> None:
    model = digest_model()
    with Running(model, keep_alive_s=keep_alive_s) as server:
        model.executable.delay_s = 0.3
        text = server.http.post("/v1/completions", json={**LONG, "max_tokens": 2, "stream": True}, timeout=20).text
    assert (": keep-alive" in text) == comments
    assert text.endswith("data: [DONE]\n\n")
