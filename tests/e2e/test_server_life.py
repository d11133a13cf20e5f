# SPDX-License-Identifier: Apache-2.0
"""How a server ends and fails: drains, second signals, a dead engine, a broken distribution, a step without end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import LONG, Running, digest_model, events, eventually, text_of

from linnet.serve import lifecycle, shapes

pytestmark = pytest.mark.alone


def read_stream(server: Running, body: dict[str, Any], found: list[Any]) -> None:
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}, timeout=20) as response:
        found.append(response.status_code)
        found.extend(events(response))


@pytest.mark.parametrize("shutdown_s", [10.0, 0.3, 0.0])
def test_a_drain_finishes_or_ends_requests_and_refuses_new_ones(shutdown_s: float) -> None:
    model = digest_model(num_blocks=256)
    with Running(model, shutdown_s=shutdown_s) as server:
        model.executable.delay_s = 0.02
        found: list[Any] = []
        reader = threading.Thread(target=read_stream, args=(server, {**LONG, "max_tokens": 60}, found))
        reader.start()
        eventually(lambda: server.metric("num_requests_running") == 1)
        server.signal()
        if shutdown_s == 10.0:
            assert server.server is not None
            eventually(lambda: not server.server.admission.open)  # type: ignore[union-attr]
            health = server.http.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            assert server.http.get("/live").status_code == 200
            late = server.http.post("/v1/completions", json=LONG)
            assert late.status_code == 503
            assert late.headers["retry-after"]
            assert late.json()["error"]["code"] == "unavailable"
        reader.join(20)
        server.stop()
        assert server.status == 0
    if shutdown_s == 10.0:
        assert found[-1] == "[DONE]"
    else:
        assert found[0] == 503 or found[-1]["error"]["code"] == "unavailable"
        assert "[DONE]" not in found


PHASES = ("idle", "prefill", "decode", "queued", "streaming")


@pytest.mark.parametrize("shutdown_s", [10.0, 0.2, 0.0])
@pytest.mark.parametrize("phase", PHASES)
def test_the_end_at_any_moment(phase: str, shutdown_s: float) -> None:
    """Whatever is under way: complete, or told that it was ended; never anything else, and the server ends with 0."""
    model = digest_model(num_blocks=256, max_sequences=1, token_budget=8)
    asked: list[dict[str, Any]] = []
    if phase != "idle":
        prompt = [5] * 120 if phase == "prefill" else "the rain"
        asked = [LONG | {"prompt": prompt, "max_tokens": 12, "stream": phase == "streaming"}]
        asked *= 3 if phase == "queued" else 1
    with Running(model, shutdown_s=shutdown_s) as server, ThreadPoolExecutor(4) as pool:
        model.executable.delay_s = 0.02
        answers = [pool.submit(server.http.post, "/v1/completions", json=body, timeout=20) for body in asked]
        if phase in ("prefill", "queued"):
            eventually(lambda: model.counters().running_requests == 1)
        if phase == "queued":
            eventually(lambda: model.counters().waiting_requests == 2)
        if phase in ("decode", "streaming"):
            eventually(lambda: model.counters().steps > 3)
        server.signal()
        for answer in [one.result() for one in answers]:
            whole = answer.status_code == 200 and "error" not in answer.text
            assert whole or "shutting down" in answer.text, answer.text
            assert whole or shutdown_s < 10.0
        server.stop()  # a second signal, which finds nothing to do
        assert server.status == 0


def test_a_second_signal_ends_the_drain() -> None:
    model = digest_model(num_blocks=256)
    with Running(model, shutdown_s=60.0) as server:
        model.executable.delay_s = 0.05
        found: list[Any] = []
        reader = threading.Thread(target=read_stream, args=(server, LONG, found))
        reader.start()
        eventually(lambda: server.metric("num_requests_running") == 1)
        server.signal()
        time.sleep(0.1)
        began_s = time.monotonic()
        server.signal()
        server.stop()
        assert time.monotonic() - began_s < 3.0
        assert server.status == 0
        reader.join(5)
    assert found[-1]["error"]["code"] == "unavailable"


def test_an_engine_that_breaks_is_told_to_everybody_and_ends_the_server() -> None:
    model = digest_model(num_blocks=256)
    with Running(model) as server:
        model.executable.delay_s = 0.02
        model.executable.break_after = model.executable.steps + 20
        found: list[Any] = []
        reader = threading.Thread(target=read_stream, args=(server, LONG, found))
        reader.start()
        eventually(lambda: model.executable.steps > 5)
        waiting = server.http.post("/v1/completions", json=LONG, timeout=5)
        assert waiting.status_code == 503
        assert "kernel" not in waiting.text
        reader.join(5)
        assert found[-1]["error"]["code"] == "engine_lost"
        server._thread.join(5)
        assert server.status == 1


def test_a_broken_distribution_ends_one_request_only() -> None:
    model = digest_model()
    model.executable.nan_token = 77
    with Running(model) as server:
        response = server.http.post("/v1/completions", json={**LONG, "prompt": [77, 5]}, headers={"x-request-id": "r1"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "no_distribution"
        assert "r1" in response.json()["error"]["message"]
        assert text_of(server, {**LONG, "max_tokens": 3, "logit_bias": {"77": -100}})
        server.wait_settled()


def test_status_lines_come_while_there_is_traffic() -> None:
    with Running(digest_model(), status_s=0.05) as server:
        text_of(server, {**LONG, "max_tokens": 5})
        eventually(lambda: any("tokens/s generated" in line for line in server.lines))
        time.sleep(0.15)
        count = len(server.lines)
        time.sleep(0.2)
        assert len(server.lines) == count


def test_health_says_when_a_step_does_not_end() -> None:
    model = digest_model()
    with Running(model, stall_s=0.2) as server:
        model.executable.delay_s = 1.0
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(text_of, server, {**LONG, "max_tokens": 2})
            eventually(lambda: server.http.get("/health").status_code == 503)
            assert server.http.get("/health").json()["status"] == "stalled"
            assert server.http.get("/live").status_code == 200
            held.result()
        assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("signals", [1, 2])
def test_a_step_that_does_not_end_cannot_hold_up_the_end(signals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LAST_STEP_S", 0.2)
    model = digest_model(num_blocks=256)
    with Running(model, shutdown_s=0.5 if signals == 1 else 60.0) as server:
        release = threading.Event()
        execute = model.executable.execute
        model.executable.execute = lambda *arguments: (release.wait(30), execute(*arguments))[1]
        with ThreadPoolExecutor(2) as pool:
            held = pool.submit(server.http.post, "/v1/completions", json=LONG, timeout=20)
            eventually(lambda: model._engine.stepping)
            began_s = time.monotonic()
            server.signal()
            if signals == 2:
                time.sleep(0.1)
                server.signal()
            server._thread.join(10)
            took_s = time.monotonic() - began_s
            release.set()
            answer = held.result()
    assert server.status == 1
    assert took_s < 3.0
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    eventually(lambda: not model._engine.stepping)


def test_our_own_defect_shows_the_request_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def defect(body: bytes, visit: Any) -> Any:
        raise RuntimeError("sentinel-of-the-defect")

    with Running(digest_model()) as server:
        assert server.server is not None
        server.server.generation.preparer.completion = defect  # type: ignore[method-assign]
        response = server.http.post("/v1/completions", json=LONG, headers={"x-request-id": "r-5"})
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-should-retry"] == "false"
        message = "internal error; request id r-5"
        expected = {"message": message, "type": "internal_error", "param": None, "code": "internal_error"}
        assert response.json() == {"error": expected}
        server.wait_settled()
    assert "RuntimeError" in caplog.text
    assert "sentinel-of-the-defect" not in caplog.text


def test_connections_beyond_the_limit_are_told_so() -> None:
    with Running(digest_model(), connections=2) as server:
        with server.client() as one, server.client() as two, server.client() as three:
            assert one.get("/health").status_code == 200
            assert two.get("/health").status_code == 200
            full = three.get("/health")
            assert full.status_code == 503
            assert full.json()["error"]["code"] == "unavailable"
            assert full.headers["retry-after"]
            assert full.headers["connection"] == "close"
            assert one.get("/health").status_code == 200


@pytest.mark.parametrize("body", [{}, {"echo": True, "logprobs": 1}])
def test_a_defect_in_mid_stream_is_an_error_event(body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*arguments: object) -> Any:
        raise RuntimeError("sentinel-of-the-defect")

    with Running(digest_model()) as server:
        monkeypatch.setattr(shapes.CompletionShape, "_choice", defect)
        headers = {"x-request-id": "r-6"}
        stream = {**LONG, "max_tokens": 9, "stream": True, **body}
        with server.http.stream("POST", "/v1/completions", json=stream, headers=headers) as response:
            assert response.status_code == 200
            found = events(response)
        assert found[-1]["error"]["message"] == "internal error; request id r-6"
        assert "[DONE]" not in found
        server.wait_settled()
