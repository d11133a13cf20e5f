# SPDX-License-Identifier: Apache-2.0
"""How questions are put: whole texts behind the token that begins one, conversations without a template, what fits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

pytest.importorskip("torch", reason="runs on the reference backend")

from linnet.api import LLM
from linnet.errors import ConfigError
from linnet.evals.abilities import answer, fitting
from linnet.evals.questions import Message, Question, QuestionSet

TEXTS = ("the cat in the hat.", "in the end, a hat.", "one on the other.")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with LLM(directory, policy="exact", backend="reference", max_model_len=64, max_sequences=4) as opened:
        yield opened


def chosen(llm: LLM, **fields: object) -> int:
    """Which choice the model takes: the one whose index, given as the answer, counts as right."""
    for index in range(len(TEXTS)):
        question = Question("q", "a", "choice", index, choices=TEXTS, **fields)  # type: ignore[arg-type]
        if answer(llm, QuestionSet("s", (question,)), lambda *_: None).correct[0]:
            return index
    raise AssertionError("no choice was taken")


def likeliest(llm: LLM, prompt: list[int], continuations: list[list[int]]) -> int:
    rows = [prompt + continuation for continuation in continuations]
    scores = llm.score(rows, starts=[len(prompt)] * len(rows))
    return int(np.argmax([np.sum(score) for score in scores]))


def test_whole_texts_stand_behind_the_token_that_begins_one(llm: LLM) -> None:
    """Their first tokens count too."""
    tokenizer = llm.tokenizer
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_ids[0]
    assert chosen(llm, prompt="") == likeliest(llm, [begin], [tokenizer.encode(text) for text in TEXTS])


def test_a_conversation_without_a_template_is_put_as_plain_turns(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        (path / file).unlink(missing_ok=True)
    with LLM(path, policy="exact", backend="reference", max_model_len=64, max_sequences=4) as llm:
        assert llm.tokenizer.templates.names == ()
        prompt = llm.tokenizer.encode("User: hi\nAssistant:")
        expected = likeliest(llm, prompt, [llm.tokenizer.encode(f" {text}") for text in TEXTS])
        assert chosen(llm, messages=(Message("user", "hi"),)) == expected


def test_questions_beyond_the_context_are_left_out(llm: LLM) -> None:
    short = Question("s", "a", "choice", 0, prompt="the", choices=(" cat", " hat"))
    long = Question("l", "a", "choice", 0, prompt="xyz " * 40, choices=(" cat", " hat"))
    written = Question("w", "a", "exact", "hat", prompt="the", max_tokens=80)
    questions = QuestionSet("s", (short, long, written))
    assert fitting(llm, questions, llm.max_model_len).questions == (short,)
    assert fitting(llm, QuestionSet("s", (short,)), llm.max_model_len).name == "s"
    with pytest.raises(ConfigError, match="none of the 2 questions fits into a context of 64 tokens"):
        fitting(llm, QuestionSet("s", (long, written)), llm.max_model_len)
