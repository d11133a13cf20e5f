# SPDX-License-Identifier: Apache-2.0
"""What a server writes: for machines one JSON line of everything, each finished request too; else it stays calm."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import LONG, NAME, Running, digest_model, eventually
from tiny_llama import write_tiny_llama

KEY, OTHER = "key-of-the-first-tenant", "key-of-the-other-tenant"
FIELDS = ["event", "time", "request_id", "method", "route", "status", "tenant"]
WORK = ["model", "prompt_tokens", "completion_tokens", "cached_tokens", "finish_reasons", "queued_s", "first_token_s"]


def told(server: Running) -> dict[str, dict[str, Any]]:
    """The lines of requests, by their ids."""
    lines = [json.loads(line) for line in server.lines]
    return {line["request_id"]: line for line in lines if line["event"] == "request"}


def ask(server: Running, name: str, path: str, body: Any, key: str | None = None) -> httpx.Response:
    headers = {"X-Request-Id": name} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    return server.http.post(path, json=body, headers=headers)


def test_a_finished_request_is_one_line_with_what_it_took() -> None:
    body = {"model": NAME, "prompt": "the rain in the morning", "max_tokens": 4, "ignore_eos": True}
    with Running(digest_model(), log_json=True) as server:
        first = ask(server, "first", "/v1/completions", body).json()["usage"]
        again = ask(server, "again", "/v1/completions", {**body, "n": 3, "model": "other-name"}).json()["usage"]
        ask(server, "stream", "/v1/completions", {**body, "stream": True})
        ask(server, "wrong", "/v1/completions", {**body, "n": "x"})
        ask(server, "tokens", "/tokenize", {"model": NAME, "prompt": "the"})
        for path in ("/health", "/metrics", "/", "/state", "/v1/models"):
            assert server.http.get(path, headers={"X-Request-Id": path.strip("/") or "page"}).status_code == 200
        server.http.get("/no/such/page", headers={"X-Request-Id": "lost"})
        server.wait_settled()
    lines = told(server)
    assert list(lines) == ["first", "again", "stream", "wrong", "tokens", "lost"]
    for name, usage, model, reasons in (("first", first, NAME, 1), ("again", again, "other-name", 3)):
        line = lines[name]
        assert list(line) == [*FIELDS, *WORK, "total_s"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert (line["route"], line["status"], line["tenant"]) == ("/v1/completions", 200, None)
        assert (line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]) == (
            usage["prompt_tokens"], usage["completion_tokens"], cached,
        )  # fmt: skip
        assert (line["model"], line["finish_reasons"]) == (model, ["length"] * reasons)
        assert 0 <= line["queued_s"] <= line["first_token_s"] <= line["total_s"]
    assert lines["again"]["cached_tokens"] > 0
    assert (lines["stream"]["completion_tokens"], lines["stream"]["status"]) == (4, 200)
    assert list(lines["wrong"]) == [*FIELDS, "total_s"]
    assert [lines[name]["status"] for name in ("wrong", "tokens", "lost")] == [400, 200, 404]
    assert lines["lost"]["route"] == "other"


def test_a_client_that_leaves_is_told_as_such() -> None:
    model = digest_model()
    model.executable.delay_s = 0.02
    with Running(model, log_json=True) as server:
        with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/completions", json=LONG, timeout=0.2)
        eventually(lambda: len(told(server)) == 2)
    streamed, whole = told(server).values()
    assert (streamed["status"], streamed["finish_reasons"]) == (200, ["abort"])
    assert (whole["status"], whole["finish_reasons"]) == (499, ["abort"])


def test_prompts_and_keys_are_in_no_line_and_tenants_are_told_apart() -> None:
    sentinel = "sentinel-8271-prompt"
    message = {"role": "user", "content": sentinel}
    with Running(digest_model(), log_json=True, keys=(KEY, OTHER)) as server:
        for key in (KEY, OTHER, "no-key-of-this-server", KEY):
            ask(server, f"whole-{key[:9]}", "/v1/completions", {"model": NAME, "prompt": sentinel, "stop": "8"}, key)
            for path, body in (
                ("/v1/completions", {"model": NAME, "prompt": sentinel, "n": sentinel}),
                ("/v1/completions", {"model": sentinel, "prompt": "rain"}),
                ("/v1/chat/completions", {"model": NAME, "messages": [message], "user": sentinel}),
                (f"/v1/{sentinel}?{sentinel}", {}),
            ):
                ask(server, "", path, body, key)
    lines = [json.loads(line) for line in server.lines if '"request"' in line]
    assert len(lines) == 20
    for secret in (sentinel, KEY, OTHER, "no-key-of-this-server"):
        assert not [line for line in server.lines if secret in line]
    tenants = [line["tenant"] for line in lines]
    assert tenants[:5] == tenants[15:] == [tenants[0]] * 5
    assert tenants[10:15] == [None] * 5
    assert len({*tenants}) == 3


def test_sentences_for_people_stay_calm() -> None:
    with Running(digest_model(), status_s=1000.0) as server:
        for _ in range(3):
            ask(server, "", "/v1/completions", {"model": NAME, "prompt": "the", "max_tokens": 1})
        before = list(server.lines)
    assert not before
    assert len(server.lines) == 1  # what it took of memory


@pytest.mark.alone
def test_everything_that_a_server_writes_for_machines_is_json(tmp_path: Path) -> None:
    """A start that fails, a request, an engine that is killed, the end."""
    directory = write_tiny_llama(tmp_path / "tiny-llama")
    command = [sys.executable, "-m", "linnet.cli.main", "serve", "--log-format", "json", "--port", "0"]
    command += ["--kv-cache-memory", "1MiB"]
    missing = [*command, str(tmp_path / "none")]
    failed = subprocess.run(missing, capture_output=True, text=True, timeout=120, check=False)
    (line,) = failed.stderr.splitlines()
    error = json.loads(line)
    assert (failed.returncode, error["event"], error["code"]) == (3, "error", "checkpoint_error")
    lines: list[dict[str, Any]] = []
    with subprocess.Popen([*command, str(directory)], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None

        def until(wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            while not (lines and wanted(lines[-1])):
                lines.append(json.loads(server.stderr.readline()))  # type: ignore[union-attr]
            return lines[-1]

        try:
            url = until(lambda line: line["event"] == "ready")["url"]
            body = {"model": "tiny-llama", "prompt": "the", "max_tokens": 2}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=30).status_code == 200
            until(lambda line: line["event"] == "request")
            (engine,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            os.kill(int(engine), signal.SIGKILL)
            assert "SIGKILL" in until(lambda line: line["event"] == "log")["message"]
            server.send_signal(signal.SIGTERM)
            until(lambda line: line["event"] == "ended")
            assert not server.stderr.read()
        finally:
            server.kill()
    assert all(list(line)[:2] == ["event", "time"] for line in lines)


@pytest.mark.alone
def test_a_pipe_that_nobody_reads_stops_no_server(tmp_path: Path) -> None:
    """Where lines were written by who answers, the pipe was full after some dozens and so was the server's patience."""
    command = [sys.executable, "-m", "linnet.cli.main", "serve", "--log-format", "json", "--port", "0"]
    command += ["--kv-cache-memory", "1MiB", str(write_tiny_llama(tmp_path / "tiny-llama"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        fcntl.fcntl(server.stderr, fcntl.F_SETPIPE_SZ, 4096)
        try:
            url = json.loads(server.stderr.readline())["url"]
            with httpx.Client(base_url=url, timeout=10) as http:
                for _ in range(100):
                    assert http.get("/no/such/page").status_code == 404
                body = {"model": "tiny-llama", "prompt": "the", "max_tokens": 2}
                assert http.post("/v1/completions", json=body).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
        finally:
            server.kill()
