# SPDX-License-Identifier: Apache-2.0
"""Moderated answers over HTTP: ``content_filter``, errors that let nothing out, hooks that take their time."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import LONG, NAME, Running, digest_model, events, eventually

from linnet.serve import moderating

pytestmark = pytest.mark.alone
SHORT = {"model": NAME, "prompt": "the rain", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


class Hook:
    """Says of the n-th text what it is told to, after so long."""

    def __init__(self) -> None:
        self.said: str | Exception = "continue"
        self.after = 0
        self.delay_s = 0.0
        self.let_go = threading.Event()
        self.hangs = False
        self.seen: list[str] = []

    def __call__(self, shown: str, fresh: str) -> Any:
        self.seen.append(fresh)
        if self.hangs:
            self.let_go.wait(60)
        time.sleep(self.delay_s)
        if len(self.seen) <= self.after:
            return "continue"
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.let_go.set()


@pytest.fixture
def server(hook: Hook) -> Iterator[Running]:
    with Running(digest_model(moderate=hook)) as running:
        running.llm.executable.delay_s = 0.01  # no answer is whole before the hook has seen its beginning
        yield running
        running.wait_settled()


def post(server: Running, body: dict[str, Any], path: str = "completions") -> httpx.Response:
    return server.http.post(f"/v1/{path}", json=body)


def stream(server: Running, body: dict[str, Any]) -> list[Any]:
    return events(post(server, body | {"stream": True}))


def test_stop_is_a_content_filter(server: Running, hook: Hook) -> None:
    hook.said, hook.after = "stop", 1
    choice = post(server, LONG | {"return_token_ids": True}).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("content_filter", None)
    assert choice["text"] == hook.seen[0]
    assert len(choice["token_ids"]) < 100

    hook.seen.clear()
    found = stream(server, LONG)
    assert found[-1] == "[DONE]"
    assert "".join(one["choices"][0]["text"] for one in found[:-1]) == hook.seen[0]
    assert found[-2]["choices"][0]["finish_reason"] == "content_filter"

    hook.seen.clear()
    chat = {"model": NAME, "messages": [{"role": "user", "content": "rain"}], "max_tokens": 50, "ignore_eos": True}
    found = stream_of_chat(server, chat)
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in found[:-1]) == hook.seen[0]
    assert found[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert server.metric("request_success_total", finished_reason="policy") == 3


def stream_of_chat(server: Running, body: dict[str, Any]) -> list[Any]:
    return events(post(server, body | {"stream": True}, "chat/completions"))


def test_end_is_a_stop(server: Running, hook: Hook) -> None:
    hook.said, hook.after = "end", 1
    choice = post(server, LONG).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "policy")
    assert choice["text"] == "".join(hook.seen[:2])


def test_it_changes_nothing_where_it_has_nothing_against_it(server: Running, hook: Hook) -> None:
    with Running(digest_model()) as plain:
        wanted = post(plain, SHORT).json()["choices"]
    assert post(server, SHORT).json()["choices"] == wanted
    hook.delay_s = 0.01  # so that several events are read as one
    found = stream(server, SHORT)
    assert "".join(one["choices"][0]["text"] for one in found[:-1]) == wanted[0]["text"]
    assert found[-2]["choices"][0]["finish_reason"] == "length"


def test_a_hook_that_fails_lets_nothing_out(server: Running, hook: Hook) -> None:
    hook.said = RuntimeError("secret words")
    answer = post(server, LONG)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "moderation_failed"
    assert "the moderation hook failed (RuntimeError)" in error["message"]
    assert "secret" not in answer.text
    hook.seen.clear()
    hook.after = 2
    found = stream(server, LONG)
    assert found[-1]["error"]["code"] == "moderation_failed"
    assert "".join(one["choices"][0]["text"] for one in found[:-1]) == "".join(hook.seen[:2])


def test_a_hook_may_take_its_time(server: Running, hook: Hook) -> None:
    """The engine goes on and the server answers meanwhile; what waits is shown to it in one piece."""
    hook.hangs = True
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(post(server, SHORT).json()))
    thread.start()
    eventually(lambda: server.llm.counters().finished.get("length", 0) == 1)
    begun = time.monotonic()
    assert server.http.get("/health").status_code == 200
    assert time.monotonic() - begun < 1.0
    assert len(hook.seen) == 1
    assert not answers
    hook.let_go.set()
    thread.join(10)
    assert len(hook.seen) == 2
    assert answers[0]["choices"][0]["text"] == "".join(hook.seen)


def test_a_hook_that_never_answers_has_failed(server: Running, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert moderating.Reader.__init__.__defaults__ == (moderating.MOST_S,)
    monkeypatch.setattr(moderating.Reader.__init__, "__defaults__", (0.2,))
    hook.hangs = True
    answer = post(server, LONG)
    assert answer.status_code == 500
    assert "did not answer within 0.2 s" in answer.json()["error"]["message"]


def test_a_client_that_leaves_while_the_hook_looks(server: Running, hook: Hook) -> None:
    hook.delay_s = 0.05
    with server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        next(response.iter_lines())
    server.wait_settled()
    assert server.metric("requests_aborted_total") == 1
