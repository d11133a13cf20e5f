# SPDX-License-Identifier: Apache-2.0
"""Strict where silence would change the answer, lenient where it cannot: what real clients send (cases Q1 to Q19)."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import NAME, Running, digest_model, events

from linnet.serve.protocol import ChatRequest, CompletionRequest
from linnet.serve.protocol.neutral import NEUTRAL

PROMPT = "the cat and the hat in the rain"
MESSAGES = [{"role": "user", "content": "Who are you?"}]
COMPLETION = {"model": NAME, "prompt": PROMPT, "max_tokens": 6, "seed": 1}
CHAT = {"model": NAME, "messages": MESSAGES, "max_tokens": 6, "seed": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=512)) as running:
        yield running
        running.wait_settled()


def answer(server: Running, body: dict[str, Any], status: int = 200) -> Any:
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = server.http.post(route, json=body)
    assert response.status_code == status, response.text
    return response.json()


def said(server: Running, body: dict[str, Any]) -> Any:
    choice = answer(server, body)["choices"][0]
    return choice.get("text", choice.get("message"))


def special_tokens(server: Running) -> list[str]:
    tokenizer = server.llm.tokenizer
    return [tokenizer.token(one) for one in sorted(tokenizer.special_token_ids - set(tokenizer.eos_token_ids))]


def test_a_stop_string_that_is_a_special_token_stops_there(server: Running) -> None:
    tokenizer = server.llm.tokenizer
    stop = special_tokens(server)[0]
    biased = COMPLETION | {"logit_bias": {str(tokenizer.token_id(stop)): 100}, "temperature": 0, "max_tokens": 8}
    assert answer(server, biased)["usage"]["completion_tokens"] == 8
    for body in (biased, {**CHAT, **{key: biased[key] for key in ("logit_bias", "temperature", "max_tokens")}}):
        found = answer(server, body | {"stop": [stop, "zzz"]})
        choice = found["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        assert found["usage"]["completion_tokens"] == 1
        assert choice.get("text", choice.get("message", {}).get("content")) == ""
        shown = answer(server, body | {"stop": stop, "include_stop_str_in_output": True})["choices"][0]
        assert shown.get("text", shown.get("message", {}).get("content")) == stop
    assert said(server, biased | {"stop": stop, "skip_special_tokens": False}) == ""


def test_every_token_of_a_scored_echo_is_where_its_offset_says(server: Running) -> None:
    tokenizer = server.llm.tokenizer
    special = special_tokens(server)[0]
    special_id = tokenizer.token_id(special)
    prompts: list[Any] = [
        f"{special}the cat{special} in the rain{special}",
        [special_id, *tokenizer.encode(PROMPT), special_id, *tokenizer.encode(" and")],
    ]
    for prompt in prompts:
        for max_tokens in (0, 4):
            body = COMPLETION | {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
            body |= {"ignore_eos": True, "logit_bias": {"80": 100}, "temperature": 0}
            choice = answer(server, body)["choices"][0]
            logprobs, text = choice["logprobs"], choice["text"]
            assert special in logprobs["tokens"]
            for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
                assert text[offset : offset + len(token)] == token


NEUTRAL_EVERYWHERE: dict[str, Any] = {
    "best_of": 1, "n": 1, "use_beam_search": False, "length_penalty": 1.0, "spaces_between_special_tokens": True,
    "min_tokens": 0, "ignore_eos": False, "tools": [], "cache_prompt": True,
    "repeat_penalty": 1, "bad_words": [], "allowed_token_ids": None, "truncate_prompt_tokens": None, "top_k": -1,
    "min_p": 0, "mirostat": 0.0, "priority": 0, "tool_choice": "none", "logit_bias": None, "samplers": [],
}  # fmt: skip


@pytest.mark.parametrize("base", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_what_changes_nothing_is_accepted_and_changes_nothing(server: Running, base: dict[str, Any]) -> None:
    plain = said(server, base)
    for name, value in NEUTRAL_EVERYWHERE.items():
        assert said(server, base | {name: value}) == plain, name
    assert said(server, base | NEUTRAL_EVERYWHERE) == plain
    for kind, own in ((CompletionRequest, COMPLETION), (ChatRequest, CHAT)):
        if own is base:
            assert set(NEUTRAL) <= set(kind.REFUSED)
            every = {name: values[0] for name, (values, _) in kind.REFUSED.items() if values}
            assert said(server, base | every) == plain


def test_log_probabilities_that_are_switched_off_may_be_counted(server: Running) -> None:
    choice = answer(server, CHAT | {"logprobs": False, "top_logprobs": 0})["choices"][0]
    assert choice["logprobs"] is None
    answer(server, CHAT | {"top_logprobs": 0})


@pytest.mark.parametrize("base", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_usage_in_every_chunk_on_request(server: Running, base: dict[str, Any]) -> None:
    route = "/v1/chat/completions" if "messages" in base else "/v1/completions"
    for continuous in (True, False):
        options = {"include_usage": True, "continuous_usage_stats": continuous}
        with server.http.stream("POST", route, json=base | {"stream": True, "stream_options": options}) as response:
            found = events(response)[:-1]
        assert found[-1]["usage"]["completion_tokens"] == 6
        if continuous:
            counts = [chunk["usage"]["completion_tokens"] for chunk in found]
            assert counts == sorted(counts)
            assert len(set(counts)) > 2
            assert {chunk["usage"]["prompt_tokens"] for chunk in found} == {found[-1]["usage"]["prompt_tokens"]}
        else:
            assert all(chunk["usage"] is None for chunk in found[:-1])


def test_the_newer_name_of_max_tokens_wins(server: Running) -> None:
    for base in (COMPLETION, CHAT):
        body = base | {"max_tokens": 6, "max_completion_tokens": 3, "ignore_eos": True}
        assert answer(server, body)["usage"]["completion_tokens"] == 3


def test_an_integral_number_is_an_integer(server: Running) -> None:
    for base in (COMPLETION, CHAT):
        floats = {"max_tokens": 6.0, "seed": 1.0, "n": 1.0, "top_k": 0.0, "min_tokens": 0.0, "stop_token_ids": [80.0]}
        assert said(server, base | floats) == said(server, base | {"stop_token_ids": [80]})
        assert answer(server, base | {"max_tokens": 16.5}, 400)["error"]["param"] == "max_tokens"
    ids = server.llm.tokenizer.encode(PROMPT)
    assert said(server, COMPLETION | {"prompt": [float(one) for one in ids]}) == said(server, COMPLETION)


def test_marks_for_a_cache_are_ignored(server: Running) -> None:
    mark = {"type": "ephemeral"}
    parts = [{"type": "text", "text": "Who are you?", "cache_control": mark}]
    marked = [{"role": "user", "content": parts, "cache_control": mark}]
    plain = [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}]
    assert said(server, CHAT | {"messages": marked}) == said(server, CHAT | {"messages": plain})


def test_a_client_may_send_back_what_it_received(server: Running) -> None:
    def with_turn(turn: dict[str, Any]) -> Any:
        messages = [*MESSAGES, {"role": "assistant", **turn}, {"role": "user", "content": "And?"}]
        return said(server, CHAT | {"messages": messages})

    empty = with_turn({"content": ""})
    assert with_turn({"content": None, "refusal": "", "reasoning": None, "tool_calls": None}) == empty
    assert with_turn({"content": []}) == empty
    assert with_turn({"content": None, "refusal": "No."}) == with_turn({"content": "No."})
    received = answer(server, CHAT)["choices"][0]["message"]
    assert with_turn(received) == with_turn({"content": received["content"]})


def test_top_p_of_zero_is_greedy(server: Running) -> None:
    for base in (COMPLETION, CHAT):
        greedy = said(server, base | {"temperature": 0})
        assert said(server, base | {"top_p": 0}) == said(server, base | {"top_p": 0, "temperature": 0}) == greedy


def test_no_reasoning_is_neutral_for_a_model_without_a_switch(server: Running) -> None:
    assert said(server, CHAT | {"reasoning_effort": "none"}) == said(server, CHAT)


def test_reasoning_effort_reaches_a_template_that_knows_it() -> None:
    from linnet.text import ChatTemplates

    model = digest_model(num_blocks=512)
    model.tokenizer.templates = ChatTemplates(
        {"default": "{% for m in messages %}{{ m.content }}{% endfor %}{{ ' the' if enable_thinking else ' rain' }}"}
    )
    with Running(model) as server:

        def prompt(**more: Any) -> int:
            return int(answer(server, CHAT | {"return_token_ids": True} | more)["choices"][0]["prompt_token_ids"][-1])

        last = {word: model.tokenizer.encode(f"x {word}")[-1] for word in ("the", "rain")}
        assert prompt(reasoning_effort="none") == last["rain"]
        assert prompt(reasoning_effort="high") == last["the"]
        assert prompt(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False}) == last["rain"]


def test_a_prompt_beyond_the_context_is_told_in_the_words_clients_look_for(server: Running) -> None:
    for body in (
        COMPLETION | {"prompt": "the rain " * 200},
        COMPLETION | {"prompt": "the rain " * 100_000},
        COMPLETION | {"prompt": [5] * 300},
        CHAT | {"messages": [{"role": "user", "content": "the rain " * 200}]},
    ):
        error = answer(server, body, 400)["error"]
        assert error["code"] == "context_length_exceeded"
        assert "This model's maximum context length is 256 tokens" in error["message"]


def test_a_load_balancer_is_answered(server: Running) -> None:
    assert server.http.head("/health").status_code == 200
    assert server.http.head("/health").content == b""
    host, port = server.url.removeprefix("http://").split(":")
    for method in (b"GET", b"HEAD"):
        with socket.create_connection((host, int(port)), timeout=5) as link:
            link.sendall(method + b" /health HTTP/1.0\r\n\r\n")
            found = b""
            while part := link.recv(1000):
                found += part
        assert found.startswith(b"HTTP/1.1 200")
        assert (b"ok" in found) == (method == b"GET")
    with socket.create_connection((host, int(port)), timeout=5) as link:
        link.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert link.recv(1000).startswith(b"HTTP/1.1 403")


def test_a_priority_that_nobody_looks_at_is_refused(server: Running) -> None:
    error = answer(server, COMPLETION | {"priority": 1}, 400)["error"]
    assert error["param"] == "priority"
    assert "fcfs" in error["message"]
    with Running(digest_model(num_blocks=512, policy="priority")) as other:
        answer(other, COMPLETION | {"priority": 1})


def test_the_best_of_several_is_returned(server: Running) -> None:
    every = answer(server, COMPLETION | {"n": 6, "logprobs": 0, "ignore_eos": True})["choices"]

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values)) / len(values)

    found = answer(server, COMPLETION | {"best_of": 6, "n": 2, "ignore_eos": True})
    ranked = [choice["text"] for choice in sorted(every, key=mean, reverse=True)]
    assert [choice["text"] for choice in found["choices"]] == ranked[:2]
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["choices"][0]["logprobs"] is None
    assert found["usage"]["completion_tokens"] == 36
    error = answer(server, COMPLETION | {"best_of": 4, "n": 2, "stream": True}, 400)["error"]
    assert error["param"] == "best_of"


def test_prompt_logprobs_are_vllms(server: Running) -> None:
    ids = server.llm.tokenizer.encode(PROMPT)
    scored = answer(server, COMPLETION | {"echo": True, "logprobs": 2})["choices"][0]["logprobs"]
    for base in (COMPLETION, CHAT):
        shown = answer(server, base | {"prompt_logprobs": 2})["choices"][0]["prompt_logprobs"]
        assert shown[0] is None
        if base is COMPLETION:
            for position, entry in enumerate(shown[1:], 1):
                assert entry[str(ids[position])]["logprob"] == scored["token_logprobs"][position]
                assert 2 <= len(entry) <= 3
                assert [one["rank"] for one in entry.values()][:2] == [1, 2]


def test_bad_words_do_not_come(server: Running) -> None:
    tokenizer = server.llm.tokenizer
    (word,) = tokenizer.encode("the", add_special_tokens=False)
    greedy = COMPLETION | {"temperature": 0, "return_token_ids": True, "logit_bias": {str(word): 100}}
    assert set(answer(server, greedy)["choices"][0]["token_ids"]) == {word}
    assert word not in answer(server, greedy | {"bad_words": ["the"]})["choices"][0]["token_ids"]


def test_a_prompt_is_cut_to_its_last_tokens(server: Running) -> None:
    ids = server.llm.tokenizer.encode("the rain " * 300)
    last = said(server, COMPLETION | {"prompt": ids[-7:]})
    for prompt in (ids, "the rain " * 300, "the rain " * 20_000):
        body = COMPLETION | {"prompt": prompt, "truncate_prompt_tokens": 7, "return_token_ids": True}
        choice = answer(server, body)["choices"][0]
        assert choice["prompt_token_ids"] == ids[-7:]
        assert choice["text"] == last
    body = COMPLETION | {"prompt": "the rain " * 300, "truncate_prompt_tokens": -1}
    assert answer(server, body)["usage"]["prompt_tokens"] == 250


def test_of_alternatives_that_look_the_same_each_is_there(server: Running) -> None:
    """Ids past the tokenizer's vocabulary have no text at all."""
    from linnet.serve.logprobs import LegacyLogprobs, TokenTexts

    tokenizer = server.llm.tokenizer
    nowhere = tokenizer.vocabulary_size
    top = ((nowhere, -1.0), (nowhere + 1, -2.0), (5, -3.0))
    logprobs = LegacyLogprobs(tokenizer, TokenTexts(tokenizer, False), True)
    shown = logprobs.block([(5, -3.0, top), (nowhere + 2, -4.0, top)])["top_logprobs"]
    assert [list(one.values()) for one in shown] == [[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0, -4.0]]
    assert f"token_id:{nowhere + 1}" in shown[0]


def test_tokenising_stops_at_the_context(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = server.llm.tokenizer
    text = "the rain in the cat and " * 2000
    ids = tokenizer.encode(text)
    seen: list[int] = []
    encode = type(tokenizer).encode

    def counted(self: Any, text: str, add_special_tokens: bool = True) -> list[int]:
        seen.append(len(text))
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(type(tokenizer), "encode", counted)
    assert tokenizer.encode_within(text, len(ids)) == ids
    assert tokenizer.encode_within(text, len(ids) - 1) is None
    seen.clear()
    assert tokenizer.encode_within("a\u0301" * 150_000, 256) is None
    assert sum(seen) < 10_000


def test_long_texts_do_not_hold_up_short_ones(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever long bodies are being read, a short one is prepared at once."""
    held = threading.Event()
    tokenizer = server.llm.tokenizer
    within = type(tokenizer).encode_within

    def slow(self: Any, text: str, most: int, add_special_tokens: bool = True) -> Any:
        if len(text) > 20_000:
            held.wait(20)
        return within(self, text, most, add_special_tokens)

    monkeypatch.setattr(type(tokenizer), "encode_within", slow)
    long = COMPLETION | {"prompt": "the rain " * 5_000}
    results: list[int] = []

    def send() -> None:
        results.append(httpx.post(f"{server.url}/v1/completions", json=long, timeout=30).status_code)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        for _ in range(3):
            answer(server, COMPLETION)
    finally:
        held.set()
        for thread in threads:
            thread.join()
    assert results == [400] * 6
