# SPDX-License-Identifier: Apache-2.0
"""The page at /: what goes over the wire. What a browser makes of it stands in test_web_page_in_a_browser.py."""

import re
from collections.abc import Iterator

import pytest
from serving import NAME, Running, digest_model

from linnet.serve.web_page import KINDS, page_files

KEY = "first-secret-key"
FILES = page_files()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(), keys=(KEY,)) as running:
        yield running
        running.wait_settled()


@pytest.mark.parametrize("path", sorted(FILES))
def test_its_files_are_open_typed_and_under_a_strict_policy(server: Running, path: str) -> None:
    answer = server.http.get(path)
    assert answer.status_code == 200
    assert answer.content == FILES[path].content
    assert answer.headers["content-type"] == KINDS["html" if path == "/" else path.rpartition(".")[2]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"


def test_who_has_a_file_gets_304_and_head_gets_no_body(server: Running) -> None:
    tag = server.http.get("/").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = server.http.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert "content-security-policy" in again.headers
    assert server.http.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    head = server.http.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(FILES["/"].content)


def test_nothing_in_its_files_comes_from_elsewhere_or_makes_html_of_text() -> None:
    namespace = "http://www.w3.org/2000/svg"  # a name, nothing is fetched from it
    for path, file in FILES.items():
        text = file.content.decode()
        assert not re.search(r"""(src|href|url|import|fetch)\W{1,3}(https?:)?//""", text.replace(namespace, "")), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text), path
    page = FILES["/"].content.decode()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page)
    named = set(re.findall(r'(?:href|src)="(/[^"]*)"', page))
    assert named <= set(FILES)
    imports = [name for file in FILES.values() for name in re.findall(rb'from "\./([\w.]+)"', file.content)]
    assert {f"/page/{name.decode()}" for name in imports} <= set(FILES)


def test_without_it_the_paths_are_like_any_other_unknown_one() -> None:
    with Running(digest_model(), keys=(KEY,), ui=False) as server:
        for path in FILES:
            assert server.http.get(path).status_code == 401
            assert server.http.get(path, headers=server.headers).status_code == 404
        assert server.http.get("/state", headers=server.headers).status_code == 200


def test_the_state_says_what_the_metrics_say(server: Running) -> None:
    body = {"model": NAME, "prompt": "the rain in a hat is long enough for blocks", "max_tokens": 9, "ignore_eos": True}
    for _ in range(2):
        assert server.http.post("/v1/completions", json=body, headers=server.headers).status_code == 200
    server.wait_settled()
    answer = server.http.get("/state", headers=server.headers)
    assert answer.headers["cache-control"] == "no-store"
    state = answer.json()
    assert state["models"] == [NAME, "other-name"]
    assert state["status"] == "ok"
    assert state["kv_blocks"] == {
        name: server.metric(f"kv_blocks_{name}") for name in ("total", "used", "cached", "free")
    }
    assert state["kv_blocks"]["cached"] > 0
    assert state["prefix"] == {
        "query_tokens": server.metric("prefix_cache_queries_total"),
        "hit_tokens": server.metric("prefix_cache_hits_total"),
    }
    assert state["prefix"]["hit_tokens"] > 0
    assert state["tokens"]["generated"] == server.metric("generation_tokens_total") == 18
    assert state["requests"] == {"running": 0, "waiting": 0}


def _luminance(colour: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark() -> None:
    """WCAG 2.2, 1.4.3: 4.5 for text; 1.4.11: 3 for what a picture is made of."""
    schemes = re.findall(r":root \{(.*?)\}", FILES["/page/page.css"].content.decode(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for ground in ("ground", "raised", "mine", "code", "doubt1", "doubt2", "doubt3"):
            assert _contrast(colour["ink"], colour[ground]) >= 7, ground
        for ground in ("ground", "raised", "mine", "code"):
            assert _contrast(colour["faint"], colour[ground]) >= 4.5, ground
            assert _contrast(colour["accent"], colour[ground]) >= 4.5, ground
        assert _contrast(colour["on-accent"], colour["accent"]) >= 4.5
        assert _contrast(colour["used"], colour["empty"]) >= 3
