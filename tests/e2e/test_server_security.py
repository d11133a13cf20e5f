# SPDX-License-Identifier: Apache-2.0
"""Keys, hosts, origins, tenants and privacy."""

import logging
from collections.abc import Iterator

import pytest
from serving import NAME, Running, digest_model

from linnet.errors import ConfigError
from linnet.serve import ServeConfig, bind
from linnet.serve.web_page import page_files

KEY, OTHER = "first-secret-key", "second-secret-key"
ROUTES = [
    ("GET", "/v1/models"), ("GET", f"/v1/models/{NAME}"), ("GET", "/metrics"), ("GET", "/version"),
    ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("POST", "/v1/embeddings"), ("GET", "/state"), ("GET", "/page"), ("GET", "/page/"), ("GET", "/page/../state"),
    ("POST", "/v1/responses"), ("POST", "/v1/score"), ("POST", "/v1/rerank"), ("GET", "/openapi.json"),
    ("GET", "/v1/sessions"), ("GET", "/v1/sessions/talk"), ("DELETE", "/v1/sessions/talk"),
    ("GET", "/unknown"), ("GET", "/health/"), ("GET", "//health"), ("GET", "/HEALTH"), ("GET", "/health%2f"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(), keys=(KEY, OTHER)) as running:
        yield running
        running.wait_settled()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-secret-key"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"X-Api-Key": KEY},
        {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/health"},
    ],
)
def test_every_route_but_the_public_ones_needs_a_key(
    server: Running, method: str, path: str, headers: dict[str, str]
) -> None:
    response = server.http.request(method, f"{server.url}{path}?api_key={KEY}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert KEY not in response.text


def test_every_route_of_the_router_is_in_the_table(server: Running) -> None:
    assert server.server is not None
    inner = server.server.app._app
    paths = {route.path.replace("{name:path}", NAME).replace("{session_id}", "talk") for route in inner.routes}  # type: ignore[attr-defined]
    assert paths - {"/health", "/live", *page_files()} <= {path for _, path in ROUTES}


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
