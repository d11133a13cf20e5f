# SPDX-License-Identifier: Apache-2.0
"""A model that people use, SmolLM2-135M-Instruct: what it is, and what it is known to answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.api import LLM, SamplingParams
from linnet.models import load_model

pytestmark = pytest.mark.real

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module", params=["fast", "exact"])
def llm(real_model: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(real_model, policy=request.param, max_model_len=256, max_sequences=2, tile_cache=False) as opened:
        yield opened


def test_its_shape_is_the_published_one(real_model: Path) -> None:
    source = load_model(real_model)
    spec = source.spec
    layer = spec.layers[0]
    assert (spec.hidden_size, layer.feed_forward.up.outputs, len(spec.layers)) == (576, 1536, 30)
    assert (layer.mixer.heads, layer.mixer.kv_heads, layer.mixer.head_size) == (9, 3, 64)
    assert (spec.vocabulary_size, spec.tied_head, spec.max_positions) == (49152, True, 8192)
    assert spec.final_norm.epsilon == 1e-5
    assert source.parameters == 134_515_008
    source.checkpoint.close()


def test_it_knows_the_capital_of_france_and_stops(llm: LLM) -> None:
    output = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=32))[0]
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == (ANSWER, "stop")


def test_its_template_names_the_assistant_and_adds_no_second_bos(llm: LLM) -> None:
    text = llm.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = llm.tokenizer.encode_chat(text)
    assert [ids.count(token_id) for token_id in (1, 2)] == [3, 2]  # <|im_start|>, <|im_end|>
    assert llm.tokenizer.eos_token_ids == (2,)


def test_it_answers_general_questions_better_than_guessing(real_model: Path) -> None:
    """A small part of the set; the whole takes minutes."""
    from linnet import evals
    from linnet.evals.abilities import answer

    questions = evals.subset(evals.general_questions(), 6)
    with LLM(real_model, max_model_len=1024, tile_cache=False) as llm:
        correct = answer(llm, questions, lambda *_: None).correct
    guessed = sum(question.chance for question in questions.questions) / len(questions.questions)
    assert guessed + 0.1 < correct.mean() < 0.95
