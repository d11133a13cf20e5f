# SPDX-License-Identifier: Apache-2.0
"""Laws of ``LLM``: session = whole conversation sent again; modules = whole prompt sent. Tokens and log-probabilities,
bit for bit, each compared with a model opened anew that caches nothing."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LLM, ParameterError, RequestOutput, SamplingParams
from linnet.errors import ConfigError, LinnetError

PARAMS = SamplingParams(temperature=0.8, max_tokens=8, seed=7, logprobs=2)
RULES = "You are a careful clerk. " * 2
FACTS = "The rain fell. " * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, policy="exact", max_sequences=4, block_size=4, check=True) as opened:
        opened.add_prompt_module("rules", RULES)
        opened.add_prompt_module("facts", FACTS)
        yield opened


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[LLM]:
    with LLM(model, policy="exact", max_sequences=4, block_size=4, prefix_cache=False) as opened:
        yield opened


def bits(outputs: list[RequestOutput]) -> Any:
    (output,) = outputs
    (answer,) = output.outputs
    assert answer.logprobs is not None
    values = [struct.pack("<f", value) for one in answer.logprobs for _, value in one.top]
    return output.prompt_token_ids, answer.text, answer.token_ids, answer.finish_reason, values


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("modules", [(), ("rules",), ("facts", "rules")])
def test_a_chat_in_a_session_is_the_whole_chat(llm: LLM, plain: LLM, modules: tuple[str, ...]) -> None:
    texts = {"rules": RULES, "facts": FACTS}
    system = [{"role": "system", "content": "\n\n".join(texts[name] for name in modules)}] if modules else []
    conversation: list[dict[str, str]] = list(system)
    for number, text in enumerate(["hello", "and then?", "why", "on"]):
        conversation.append(user(text))
        named = modules if number in (0, 2) else ()
        mine = llm.chat([user(text)], PARAMS, session="talk", prompt_modules=named)
        assert bits(mine) == bits(plain.chat(conversation, PARAMS)), number
        if number:
            assert mine[0].cached_tokens > 0
        conversation.append({"role": "assistant", "content": mine[0].outputs[0].text})
        assert llm.sessions.get(b"", "talk").content == tuple(conversation)
    assert llm.counters().kept_blocks > 0
    llm.sessions.delete(b"", "talk")
    if not modules:
        assert llm.counters().kept_blocks == 0


@pytest.mark.parametrize("form", ["text", "token_ids"])
def test_a_completion_in_a_session_is_the_whole_completion(llm: LLM, plain: LLM, form: str) -> None:
    whole: Any = "" if form == "text" else ()
    for number, text in enumerate(["the cat", " sat on", "", " mat"]):
        new: Any = text if form == "text" else tuple(llm.tokenizer.encode(text, add_special_tokens=False))
        if not new and form == "token_ids":
            continue
        whole += new
        mine = llm.generate(new, PARAMS, session="talk")
        assert bits(mine) == bits(plain.generate(whole, PARAMS)), number
        whole += mine[0].outputs[0].text if form == "text" else mine[0].outputs[0].token_ids


def test_modules_are_the_texts_themselves(llm: LLM, plain: LLM) -> None:
    for names, head in [(("rules",), RULES), (("rules", "facts"), RULES + FACTS), (("facts",), FACTS)]:
        for own in ("the cat", "a dog"):
            mine = llm.generate(own, PARAMS, prompt_modules=names)
            assert bits(mine) == bits(plain.generate(head + own, PARAMS))
        assert mine[0].cached_tokens >= len(llm.tokenizer.encode(head)) - 8
    many = llm.generate(["the cat", "a dog"], PARAMS, prompt_modules=["rules"])
    assert [bits([one]) for one in many] == [bits(plain.generate(RULES + own, PARAMS)) for own in ("the cat", "a dog")]
    own_system = [{"role": "system", "content": "Be brief."}, user("hi")]
    mine = llm.chat(own_system, PARAMS, prompt_modules=["rules"])
    joined = [{"role": "system", "content": RULES + "\n\nBe brief."}, user("hi")]
    assert bits(mine) == bits(plain.chat(joined, PARAMS))


def test_modules_stay_when_others_fill_the_cache(model: Path) -> None:
    with LLM(model, policy="exact", max_sequences=4, block_size=4, num_blocks=64, check=True) as llm:
        llm.add_prompt_module("rules", RULES)
        llm.generate("hi", PARAMS, prompt_modules=["rules"])
        kept = llm.counters().kept_blocks
        assert kept >= len(llm.tokenizer.encode(RULES)) // 4 - 1
        for index in range(12):
            llm.generate([5 + index] * 60, PARAMS)
        again = llm.generate("ho", PARAMS, prompt_modules=["rules"])
        assert again[0].cached_tokens >= 4 * kept


def test_what_fails_has_not_happened(llm: LLM) -> None:
    llm.chat([user("hello")], PARAMS, session="talk")
    before = llm.sessions.get(b"", "talk")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    for call in (
        lambda: llm.chat([user("more")], SamplingParams(max_tokens=4, n=2), session="talk"),
        lambda: llm.chat([[user("more")], [user("more")]], PARAMS, session="talk"),
        lambda: llm.chat([user("more")], PARAMS, session="talk", add_generation_prompt=False),
        lambda: llm.chat([user("more" * 4000)], PARAMS, session="talk"),
        lambda: llm.chat([user("more")], PARAMS, session="talk", prompt_modules=["unknown"]),
        lambda: llm.generate("more", PARAMS, session="talk"),
        lambda: llm.generate("more", PARAMS, session="-odd"),
        lambda: llm.generate([1, 2], PARAMS, prompt_modules=["rules"]),
        lambda: llm.generate("more", PARAMS, session="fresh", progress=lambda done, total: stop(done)),
    ):
        with pytest.raises((LinnetError, KeyboardInterrupt)):
            call()
        assert llm.sessions.get(b"", "talk") == before
        assert len(llm.sessions) == 1
    timed_out = llm.chat([user("more")], PARAMS, session="talk", timeout_s=0.0)
    assert timed_out[0].outputs[0].finish_reason == "queue_timeout"
    assert llm.sessions.get(b"", "talk") == before
    with pytest.raises(ParameterError, match="n is 2; with a session accepted is 1"):
        llm.chat([user("more")], SamplingParams(max_tokens=4, n=2), session="talk")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", "x", "name is ''; accepted are 1 to 128"),
        ("a/b", "x", "accepted are 1 to 128"),
        ("rules", "x", "two prompt modules named rules"),
        ("new", "", "module new is empty"),
    ],
)
def test_odd_modules_are_refused(llm: LLM, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.add_prompt_module(name, text)
