# SPDX-License-Identifier: Apache-2.0
"""Keys, hosts, origins, tenants and privacy."""

import logging
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from serving import NAME, Running, digest_model

from linnet.errors import ConfigError
from linnet.serve import ServeConfig, bind
from linnet.serve.web_page import page_files

KEY, OTHER = "first-secret-key", "second-secret-key"
OPEN = {"/health", "/live", *page_files()}
WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong-secret-key"},
    {"Authorization": f"Bearer {KEY.upper()}"},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY} {KEY}"},
    {"Authorization": f"Bearer {KEY},Bearer {KEY}"},
    {"Authorization": "Bearer"},
    {"Authorization": ""},
    {"X-Api-Key": KEY},
    {"Api-Key": KEY, "Cookie": f"key={KEY}", "Proxy-Authorization": f"Bearer {KEY}"},
    {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
    {"X-Forwarded-Prefix": "/health", "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
]
"""No key, a wrong one, one that is nearly right, one in another place, and other ways around the question."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(), keys=(KEY, OTHER)) as running:
        yield running
        running.wait_settled()


def routes(server: Running) -> list[tuple[str, str]]:
    """Method and path of everything that the router has, parameters of paths filled in."""
    assert server.server is not None
    found = []
    for route in server.server.app._app.routes:  # type: ignore[attr-defined]
        path = route.path.replace("{name:path}", NAME).replace("{session_id}", "talk")
        assert "{" not in path, f"{path} has a parameter that this test does not know"
        found += [(method, path) for method in sorted(route.methods)]
    return found


def spellings(path: str) -> list[str]:
    """Of a path, as proxies and routers may read it."""
    inside = path[1:]
    return [f"/{path}", f"{path}/", path.upper(), f"{path}%2f", f"{path}%00", f"/%2e{path}", f"/health/..{path}",
            f"/health%2f..{path}", f"{path};/health", f"/./{inside}", f"/health/{inside}", f"\\{inside}"]  # fmt: skip


def status_of(server: Running, target: str, headers: dict[str, str]) -> int:
    """Of a GET whose target is sent as it is: other clients put paths in order first."""
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_every_route_but_the_public_ones_needs_a_key(server: Running) -> None:
    closed = [(method, path) for method, path in routes(server) if path not in OPEN]
    assert len(closed) > 15
    for method, path in closed:
        for headers in WRONG:
            response = server.http.request(method, f"{server.url}{path}?api_key={KEY}&key={KEY}", headers=headers)
            assert response.status_code == 401, (method, path, headers)
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert KEY not in response.text


def test_every_method_and_every_spelling_needs_it_too(server: Running) -> None:
    """Without the right key the answer does not even say which routes there are."""
    paths = sorted({path for _, path in routes(server) if path != "/"} | {"/unknown"})
    for path in paths:
        for odd in spellings(path):
            assert status_of(server, odd, WRONG[1]) in (400, 401), odd
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            response = server.http.request(method, f"{server.url}{path}", headers=WRONG[1])
            assert response.status_code == 401 or path in OPEN, (method, path)


def test_a_right_key_gets_past_the_question_everywhere(server: Running) -> None:
    for method, path in routes(server):
        for key in (KEY, OTHER):
            answer = server.http.request(method, server.url + path, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code in (200, 400, 404, 415), (method, path, answer.status_code)


def test_a_route_that_is_added_needs_a_key_unless_it_is_made_public() -> None:
    """Deny by default: who adds a route need not think of it."""
    with Running(digest_model(), keys=(KEY,)) as running:
        assert running.server is not None
        inner = running.server.app._app

        @inner.get("/new")  # type: ignore[attr-defined,untyped-decorator]
        async def new() -> dict[str, str]:
            return {"all": "there is"}

        assert running.http.get("/new").status_code == 401
        assert running.http.get("/new", headers=running.headers).status_code == 200


def test_public_routes_and_right_keys_answer(server: Running) -> None:
    for path in ("/health", "/live"):
        assert server.http.get(path).status_code == 200
    for scheme in ("Bearer", "bearer"):
        for key in (KEY, OTHER):
            assert server.http.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "localhost.evil.example"},
        {"Host": "localhost/health?"},
        {"Host": "localhost@evil.example"},
        {"Host": "192.0.2.1"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
    ],
)
def test_foreign_hosts_and_origins_are_403(server: Running, headers: dict[str, str]) -> None:
    allowed = {"Authorization": f"Bearer {KEY}"}
    for path in ("/v1/models", "/health"):
        response = server.http.get(path, headers=headers | allowed)
        assert response.status_code in (400, 403)
        assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = server.http.options("/v1/completions", headers=headers | allowed)
    assert preflight.status_code in (400, 403)


def test_our_own_host_names_and_origins_pass(server: Running) -> None:
    port = server.url.rsplit(":", 1)[1]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST", "localhost."):
        assert server.http.get("/health", headers={"Host": host}).status_code == 200
    origin = {"Origin": f"http://localhost:{port}", "Authorization": f"Bearer {KEY}"}
    assert server.http.get("/v1/models", headers=origin).status_code == 200


def test_a_public_address_without_a_key_does_not_start() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="API key"):
            bind(ServeConfig(names=("m",), host=host, port=0))


def cached_tokens(server: Running, key: str, prompt: str, **more: str) -> int:
    body = {"model": NAME, "prompt": prompt, "max_tokens": 2, "temperature": 0, **more}
    answer = server.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}).json()
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_no_prefix_crosses_keys(server: Running) -> None:
    prompt = "a secret system prompt that is long enough to be cached"
    assert cached_tokens(server, KEY, prompt) == 0
    assert cached_tokens(server, OTHER, prompt) == 0
    assert cached_tokens(server, KEY, prompt) > 0
    assert cached_tokens(server, KEY, prompt, cache_salt="mine") == 0
    assert cached_tokens(server, KEY, prompt, cache_salt="mine") > 0


def test_prompts_and_keys_reach_no_log_metric_or_error(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    sentinel = "sentinel-8271-prompt"
    allowed = {"Authorization": f"Bearer {KEY}"}
    answers = []
    with caplog.at_level(logging.DEBUG):
        for body in (
            {"model": NAME, "prompt": sentinel, "max_tokens": 2},
            {"model": NAME, "prompt": sentinel * 500},
            {"model": NAME, "prompt": [sentinel, 5]},
            {"model": NAME, "prompt": sentinel, "n": "x"},
        ):
            answers.append(server.http.post("/v1/completions", json=body, headers=allowed))
        message = {"role": sentinel, "content": sentinel}
        chat = {"model": NAME, "messages": [message]}
        answers.append(server.http.post("/v1/chat/completions", json=chat, headers=allowed))
    page = server.http.get("/metrics", headers=allowed).text
    for text in [caplog.text, page, *server.lines, *(answer.text for answer in answers)]:
        assert sentinel not in text
        assert KEY not in text
