# SPDX-License-Identifier: Apache-2.0
"""A conversation without a terminal: what the model is sent, what stays of a turn, what is computed again."""

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.api import LLM, SamplingParams
from linnet.cli.conversation import Conversation, converse
from linnet.cli.partners import LocalPartner
from linnet.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))
from tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny"), max_sequences=1, check=True) as opened:
        yield opened


def partner(llm: LLM, most: int) -> LocalPartner:
    return LocalPartner(llm, SamplingParams(temperature=0.0, ignore_eos=True), most)


def conversation(llm: LLM, said: list[str], notes: list[str], most: int = 5, system: str | None = None) -> Conversation:
    return Conversation(partner(llm, most), said.append, notes.append, system)


def test_a_turn_computes_only_what_is_new(llm: LLM) -> None:
    said: list[str] = []
    talk = conversation(llm, said, [])
    first = "the cat and the hat in the rain and the cat and the hat in the rain"
    talk.ask(first)
    before = llm.counters()
    talk.ask("the rain")
    after = llm.counters()
    assert after.prefix_hit_tokens - before.prefix_hit_tokens >= len(llm.tokenizer.encode(first))
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    assert "".join(said) == "".join(f"{turn['content']}\n" for turn in talk.turns[1::2])


def test_the_system_text_goes_first_and_outlives_a_reset(llm: LLM) -> None:
    notes: list[str] = []
    talk = conversation(llm, [], notes, system="be brief")
    talk.take("the cat")
    talk.take("/system be long")
    assert [message["content"] for message in talk.messages[:2]] == ["be long", "the cat"]
    talk.take("/reset")
    assert talk.messages == [{"role": "system", "content": "be long"}]
    assert not talk.take("/quit")


def test_a_message_that_gets_no_answer_is_taken_back(llm: LLM) -> None:
    talk = conversation(llm, [], [])
    with pytest.raises(ConfigError, match=r"the context holds 256: /reset"):
        talk.ask("the cat " * 200)
    assert talk.turns == []


def test_an_interrupted_answer_stays_as_far_as_it_came_and_the_engine_goes_on(llm: LLM) -> None:
    notes: list[str] = []
    said: list[str] = []

    def press(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            signal.raise_signal(signal.SIGINT)

    talk = Conversation(partner(llm, 100), press, notes.append)
    talk.take("the cat")
    assert notes == ["the answer was interrupted"]
    assert talk.interrupted
    assert talk.turns[1]["content"] == "".join(said[:-1])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    talk.take("the rain")
    assert len(talk.turns) == 4
    assert not talk.interrupted


def test_an_answer_that_fills_the_context_says_so(llm: LLM) -> None:
    notes: list[str] = []
    talk = conversation(llm, [], notes, most=1000)
    talk.take("the cat")
    assert notes == ["the context of 256 tokens is full: /reset begins a new conversation"]


def test_ctrl_c_ends_a_conversation_that_nobody_types(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def press(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            signal.raise_signal(signal.SIGINT)

    talk = Conversation(partner(llm, 100), press, lambda text: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\nthe rain\n"))
    with pytest.raises(KeyboardInterrupt):
        converse(talk, False, lambda text: None)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]


def test_a_pipe_that_is_not_text_is_said(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    with pytest.raises(ConfigError, match="standard input is not UTF-8 text"):
        converse(conversation(llm, [], []), False, lambda text: None)


def test_a_home_that_is_not_there_is_said(llm: LLM) -> None:
    notes: list[str] = []
    conversation(llm, [], notes).take("/save ~nobody-of-this-name/talk.json")
    assert len(notes) == 1
    assert "~nobody-of-this-name/talk.json cannot be written" in notes[0]
