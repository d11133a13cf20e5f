# SPDX-License-Identifier: Apache-2.0
"""Sessions and prompt modules over HTTP. The law: what comes out is what comes out if everything is sent again."""

import itertools
import json
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import LONG, NAME, Running, digest_model, events, eventually

from linnet.settings import SessionLimits

KEY, OTHER = "first-secret-key", "second-secret-key"
DEFAULTS = {"model": NAME, "max_tokens": 6, "seed": 5}
TURNS = ["the cat and the hat", "in the rain", "and then", "on the plain", "the end"]
RULES, FACTS = "You are a careful clerk of the house. ", "The rain fell on the plain. "
ids = map("talk-{}".format, itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    modules = (("rules", RULES), ("facts", FACTS))
    with Running(digest_model(num_blocks=512, kept_share=1.0), prompt_modules=modules) as running:
        yield running
        running.llm.executable.delay_s = 0.0
        running.wait_settled()


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    """A server that caches nothing."""
    with Running(digest_model(num_blocks=512, prefix_cache=False)) as running:
        yield running


def post(server: Running, route: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    response = server.http.post(f"/v1/{route}", json=DEFAULTS | body, headers=headers)
    assert response.status_code < 500, response.text
    return response


def choice(server: Running, route: str, body: dict[str, Any], stream: bool = False) -> dict[str, Any]:
    """Text, token ids and end of an answer, streamed or not."""
    body = {"return_token_ids": True, "stream": stream} | body
    if not stream:
        answer = post(server, route, body)
        assert answer.status_code == 200, answer.text
        whole = answer.json()["choices"][0]
        text = whole["message"]["content"] if "message" in whole else whole["text"]
        return {"text": text, "ids": whole["token_ids"], "end": whole["finish_reason"]}
    with server.http.stream("POST", f"/v1/{route}", json=DEFAULTS | body) as response:
        assert response.status_code == 200
        found = events(response)
    assert found[-1] == "[DONE]"
    parts = [part for chunk in found[:-1] for part in chunk["choices"]]
    return {
        "text": "".join(part["delta"].get("content") or "" if "delta" in part else part["text"] for part in parts),
        "ids": [token for part in parts for token in part.get("token_ids", ())],
        "end": parts[-1]["finish_reason"],
    }


def held(server: Running, session: str, key: str | None = None) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return server.http.get(f"/v1/sessions/{session}", headers=headers).json()


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_in_a_session_is_the_whole_chat(server: Running, plain: Running, stream: bool) -> None:
    session, conversation = next(ids), []
    for number, text in enumerate(TURNS):
        new = [{"role": "system", "content": "Be brief."}, said(text)] if number == 0 else [said(text)]
        conversation += new
        mine = choice(server, "chat/completions", {"messages": new, "session": session}, stream)
        assert mine == choice(plain, "chat/completions", {"messages": conversation}), number
        conversation.append({"role": "assistant", "content": mine["text"]})
        assert held(server, session)["content"] == conversation
        assert held(server, session)["turns"] == number + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["text", "ids"])
def test_a_completion_in_a_session_is_the_whole_completion(
    server: Running, plain: Running, stream: bool, form: str
) -> None:
    session = next(ids)
    whole: Any = "" if form == "text" else []
    for number, text in enumerate(TURNS):
        new: Any = text if form == "text" else server.llm.tokenizer.encode(text, add_special_tokens=False)
        whole = whole + new
        mine = choice(server, "completions", {"prompt": new, "session": session}, stream)
        assert mine == choice(plain, "completions", {"prompt": whole}), number
        whole = whole + mine[form]
    assert held(server, session)["content"] == whole


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
@pytest.mark.parametrize("names", [["rules"], ["rules", "facts"], ["facts", "rules"]])
def test_modules_are_the_texts_themselves(server: Running, plain: Running, route: str, names: list[str]) -> None:
    texts = [{"rules": RULES, "facts": FACTS}[name] for name in names]
    session, told = next(ids), []
    for number, own in enumerate(TURNS[:3]):
        if route == "completions":
            body: dict[str, Any] = {"prompt": own}
            whole: dict[str, Any] = {"prompt": "".join(texts) + own}
        else:
            told.append(said(own))
            body = {"messages": [said(own)], "session": session}
            whole = {"messages": [{"role": "system", "content": "\n\n".join(texts)}, *told]}
        mine = choice(server, route, body | {"prompt_modules": names})
        assert mine == choice(plain, route, whole), number
        told.append({"role": "assistant", "content": mine["text"]})


def test_modules_are_computed_at_the_start_and_the_same_for_every_key() -> None:
    modules = (("rules", RULES * 2),)
    with Running(digest_model(num_blocks=256), keys=(KEY, OTHER), prompt_modules=modules) as server:
        kept = len(server.llm.tokenizer.encode((RULES * 2).rstrip())) // 4
        eventually(lambda: server.metric("request_success_total", finished_reason="length") == 2)
        server.wait_settled()
        assert server.metric("kv_blocks_kept") >= kept
        for key in (KEY, OTHER):
            details = []
            for own in ("the cat", "the cat"):
                body = {"prompt": own, "prompt_modules": ["rules"]}
                details.append(post(server, "completions", body, key).json()["usage"]["prompt_tokens_details"])
            first, again = (one["cached_tokens"] for one in details)
            assert first == 4 * kept, "the module's blocks, and no more: what the other key asked is unknown"
            assert again >= first
            sent = {"prompt": RULES * 2 + "the cat"}
            usage = post(server, "completions", sent, key).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == 0, "the text itself belongs to who sends it"


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"prompt": "a", "n": 2}, 400, "n", "n is 2; with a session accepted is 1"),
    ({"prompt": ["a", "b"]}, 400, "prompt", "a session's turn is one"),
    ({"prompt": "a"}, 400, "session", "holds chat messages and this turn is a text"),
    ({"prompt": [5, 6]}, 400, "session", "holds chat messages and this turn is token ids"),
    ({"n": 2}, 400, "n", "n is 2; with a session accepted is 1"),
    ({"continue_final_message": True}, 400, "session", "a message of the assistant's own"),
    ({"add_generation_prompt": False}, 400, "session", "a message of the assistant's own"),
    ({"messages": [{"role": "user", "content": "a" * 2000}]}, 400, "messages", "maximum context length is"),
    ({"max_tokens": 255}, 400, "max_tokens", "maximum context length is"),
    ({"prompt_modules": ["x"]}, 400, "prompt_modules", "there is no prompt module 'x'; there are: rules, facts"),
    ({"prompt_modules": ["rules"]}, 400, "prompt_modules", "this one began with none"),
    ({"prompt_modules": ["rules"] * 17}, 400, "prompt_modules", "at most 16"),
    ({"prompt_modules": "rules"}, 400, "prompt_modules", "list"),
    ({"session_turns": 0}, 409, "session_turns", "the session has 1 turns and the request says 0"),
    ({"session_turns": -1}, 400, "session_turns", "greater"),
    ({"timeout_s": 1e-9}, 504, "", "deadline"),
    ({"top_p": 5}, 400, "top_p", "top_p"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), REFUSED)
def test_a_turn_that_is_refused_changes_nothing(
    server: Running, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    route = "completions" if "prompt" in body else "chat/completions"
    new = {} if "prompt" in body else {"messages": [said("a")]}
    session = next(ids)
    choice(server, "chat/completions", {"messages": [said("hello")], "session": session})
    before = held(server, session)
    response = server.http.post(f"/v1/{route}", json=DEFAULTS | new | {"session": session} | body)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["param"] == (param or None)
    assert words in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert held(server, session) == before
    assert choice(server, "chat/completions", {"messages": [said("more")], "session": session})


@pytest.mark.parametrize("session", ["", ".", "../x", "a/b", "a" * 129, "a b", "é", "\x00", 5, ["a"], {"id": "a"}])
def test_hostile_ids(server: Running, session: Any) -> None:
    for route, body in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": [said("a")]})):
        response = post(server, route, body | {"session": session})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "session"
        assert len(response.text) < 400
    assert post(server, "completions", {"prompt": "a", "session_turns": 1}).status_code == 400
    assert post(server, "completions", {"prompt": [5, 6], "prompt_modules": ["rules"]}).status_code == 400


@pytest.mark.parametrize("path", ["%2e%2e", "a%2fb", "..%2f..%2fsecret", "a" * 5000, "%00", "nobody", "%ff"])
def test_hostile_paths(server: Running, path: str) -> None:
    for method in ("GET", "DELETE"):
        response = server.http.request(method, f"/v1/sessions/{path}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] in ("session_not_found", "not_found")


def test_the_list_a_session_and_its_end() -> None:
    with Running(digest_model()) as server:
        assert server.http.get("/v1/sessions").json() == {"object": "list", "data": []}
        for session in ("one", "two"):
            answer = post(server, "chat/completions", {"messages": [said("hi")], "session": session}).json()
            assert answer["session"] == {"id": session, "turn": 1}
        answer = post(
            server, "chat/completions", {"messages": [said("ho")], "session": "one", "session_turns": 1}
        ).json()
        assert answer["session"] == {"id": "one", "turn": 2}
        listed = server.http.get("/v1/sessions").json()["data"]
        assert [(one["id"], one["turns"]) for one in listed] == [("two", 1), ("one", 2)]
        assert all(one["holds"] == "messages" for one in listed)
        assert listed[0]["expires"] == pytest.approx(listed[0]["last_used"] + 3600, abs=1)
        assert held(server, "one") == listed[1] | {"content": held(server, "one")["content"]}
        assert (server.metric("sessions"), server.metric("session_turns_total")) == (2, 3)
        eventually(lambda: server.metric("kv_blocks_kept") > 0)
        for session in ("one", "two"):
            deleted = server.http.delete(f"/v1/sessions/{session}")
            assert deleted.json() == {"id": session, "object": "session.deleted", "deleted": True}
            assert server.http.delete(f"/v1/sessions/{session}").status_code == 404
        assert server.metric("sessions") == 0
        eventually(lambda: server.metric("kv_blocks_kept") == 0)
        fresh = post(server, "chat/completions", {"messages": [said("ho")], "session": "one"}).json()
        assert fresh["session"]["turn"] == 1


def test_one_turn_at_a_time(server: Running) -> None:
    session = next(ids)
    choice(server, "completions", {"prompt": "the", "session": session})
    server.llm.executable.delay_s = 0.02
    body = LONG | {"session": session, "max_tokens": 100, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        second = post(server, "completions", {"prompt": " rain", "session": session})
        assert second.status_code == 409
        assert second.json()["error"]["message"] == "the session is in a turn; wait for its answer, or end that request"
        assert second.headers["x-should-retry"] == "false"
        assert server.http.delete(f"/v1/sessions/{session}").status_code == 409
        server.llm.executable.delay_s = 0.0
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert held(server, session)["turns"] == 2
    assert post(server, "completions", {"prompt": " rain", "session": session}).status_code == 200


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_has_had_no_turn(server: Running, stream: bool, first: bool) -> None:
    session = next(ids)
    if not first:
        choice(server, "completions", {"prompt": "the", "session": session})
    before = held(server, session)
    server.llm.executable.delay_s = 0.02
    body = LONG | {"session": session, "stream": stream}
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        eventually(lambda: server.metric("num_requests_running") == 1)
        if stream:
            assert link.recv(100).startswith(b"HTTP/1.1 200")
    server.wait_settled()
    server.llm.executable.delay_s = 0.0
    assert held(server, session) == before
    assert held(server, session).get("turns", 0) == (0 if first else 1)
    assert post(server, "completions", {"prompt": " cat", "session": session}).status_code == 200


def test_an_engine_error_is_no_turn(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    session = next(ids)
    choice(server, "completions", {"prompt": "the", "session": session})
    before = held(server, session)
    server.llm.executable.delay_s = 0.05
    body = {"prompt": " cat", "session": session, "max_tokens": 200, "ignore_eos": True, "timeout_s": 0.3}
    response = server.http.post("/v1/completions", json={"model": NAME} | body)
    assert response.status_code == 504
    server.llm.executable.delay_s = 0.0
    assert held(server, session) == before


def test_a_session_belongs_to_its_key() -> None:
    with Running(digest_model(), keys=(KEY, OTHER), sessions=SessionLimits(max_sessions=2)) as server:
        for key, text in ((KEY, "the cat"), (OTHER, "a hat")):
            assert post(server, "completions", {"prompt": text, "session": "same"}, key).json()["session"]["turn"] == 1
            assert held(server, "same", key)["content"].startswith(text)
        post(server, "completions", {"prompt": "x", "session": "mine"}, KEY)
        unknown = server.http.get("/v1/sessions/mine", headers={"Authorization": f"Bearer {OTHER}"})
        assert unknown.status_code == 404
        listed = server.http.get("/v1/sessions", headers={"Authorization": f"Bearer {OTHER}"}).json()["data"]
        assert [one["id"] for one in listed] == ["same"]
        full = post(server, "completions", {"prompt": "x", "session": "third"}, KEY)
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "session_limit"
        assert full.headers["retry-after"] == "120"
        assert full.headers["x-should-retry"] == "false"
        assert post(server, "completions", {"prompt": "x", "session": "third"}, OTHER).status_code == 200


def test_a_session_that_is_not_used_ends() -> None:
    with Running(digest_model(), sessions=SessionLimits(session_ttl_s=0.3)) as server:
        post(server, "completions", {"prompt": "the cat", "session": "short"})
        eventually(lambda: server.metric("kv_blocks_kept") > 0)
        time.sleep(0.35)
        assert server.metric("sessions") == 0
        eventually(lambda: server.metric("kv_blocks_kept") == 0)
        assert post(server, "completions", {"prompt": "x", "session": "short"}).json()["session"]["turn"] == 1
    with Running(digest_model(), sessions=SessionLimits(max_sessions=0)) as server:
        refused = post(server, "completions", {"prompt": "x", "session": "short"})
        assert refused.status_code == 429
        assert "keeps no sessions" in refused.json()["error"]["message"]


def test_sessions_survive_a_restart(tmp_path: Path, plain: Running) -> None:
    folder = tmp_path / "sessions"
    conversation: list[dict[str, str]] = []
    for text in TURNS[:3]:
        with Running(digest_model(), keys=(KEY, OTHER), session_dir=folder) as server:
            conversation.append(said(text))
            answer = post(server, "chat/completions", {"messages": [said(text)], "session": "long"}, KEY).json()
            mine = answer["choices"][0]["message"]["content"]
            assert mine == choice(plain, "chat/completions", {"messages": conversation})["text"]
            conversation.append({"role": "assistant", "content": mine})
            assert held(server, "long", KEY)["content"] == conversation
            assert held(server, "long", OTHER)["error"]["code"] == "session_not_found"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with Running(digest_model(), keys=(KEY,), session_dir=folder) as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert server.http.delete("/v1/sessions/long", headers=headers).status_code == 200
    with Running(digest_model(), keys=(KEY,), session_dir=folder) as server:
        assert held(server, "long", KEY)["error"]["code"] == "session_not_found"


def test_what_is_kept_spares_the_computing_that_others_would_cost() -> None:
    """Strangers fill the cache between two turns; with a share for sessions the conversation is found again."""

    def cached(share: float) -> int:
        with Running(digest_model(num_blocks=96, kept_share=share)) as server:
            post(server, "completions", {"prompt": "the cat and the hat in the rain " * 4, "session": "talk"})
            eventually(lambda: share == 0 or server.metric("kv_blocks_kept") > 0)
            for number in range(8):
                post(server, "completions", {"prompt": f"{number} is a number of the house " * 6})
            usage = post(server, "completions", {"prompt": "more", "session": "talk"}).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(0.5) >= 80
    assert cached(0.0) == 0


def test_the_official_client(server: Running) -> None:
    client, session = server.openai(), next(ids)
    with_session = {"session": session, "prompt_modules": ["rules"]}
    for number, text in enumerate(TURNS[:2]):
        answer = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": text}], max_tokens=5, extra_body=with_session
        )
        assert answer.model_extra == {"session": {"id": session, "turn": number + 1}}
    stream = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "x"}], max_tokens=5, stream=True, extra_body=with_session
    )
    assert all((chunk.model_extra or {})["session"]["turn"] == 3 for chunk in stream)
    assert client.get(f"/sessions/{session}", cast_to=httpx.Response).json()["turns"] == 3


def test_what_a_server_refuses_at_its_start(tmp_path: Path) -> None:
    from linnet.errors import ConfigError
    from linnet.serve import ServeConfig, build_server

    def refusal(**settings: Any) -> str:
        with pytest.raises(ConfigError) as refused:
            build_server(digest_model(), ServeConfig(names=(NAME,), **settings))
        return str(refused.value)

    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(session_dir=tmp_path / "file")
    assert "the prompt module long has" in refusal(prompt_modules=(("long", "the cat " * 500),))
    assert "is empty" in refusal(prompt_modules=(("empty", ""),))
