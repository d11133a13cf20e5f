# SPDX-License-Identifier: Apache-2.0
"""Beam search against transformers' ``generate(num_beams=…)``: the same answers in the same order, exact fp32.

Beside a grammar, against transformers told which tokens may come (``prefix_allowed_tokens_fn``), and against all there
is where a grammar has few answers.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers", reason="golden answers need transformers")
import torch
import transformers
from tiny_llama import write_tiny_llama

from linnet.api import LLM, SamplingParams, StructuredOutput
from linnet.errors import LinnetError

PROMPTS = [[5, 9, 33, 17, 60, 2, 8], [40, 41], list(range(30, 70))]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny_llama(tmp_path_factory.mktemp("beams"), spread=0.3)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return path, model.eval()


def theirs(
    model: Any, prompt: list[int], params: SamplingParams, stops: list[int], allowed: Any = None
) -> list[tuple[int, ...]]:
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            num_beams=params.n,
            num_return_sequences=params.n,
            max_new_tokens=params.max_tokens,
            min_new_tokens=params.min_tokens or None,
            do_sample=False,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            eos_token_id=stops or None,
            pad_token_id=0,
            prefix_allowed_tokens_fn=allowed and (lambda _, ids: allowed(ids.tolist()[len(prompt) :])),
            return_dict_in_generate=True,
            output_scores=True,
        )
    answers = []
    for sequence in found.sequences.tolist():
        tokens = sequence[len(prompt) :]
        ends = [place for place, token in enumerate(tokens) if token in stops and place >= params.min_tokens]
        answers.append(tuple(tokens[: ends[0] + 1] if ends else tokens))
    return answers


def ours(
    llm: LLM, prompt: list[int], params: SamplingParams, structured: StructuredOutput | None = None
) -> list[tuple[int, ...]]:
    (output,) = llm.generate([prompt], params, structured=structured)
    return [completion.token_ids for completion in output.outputs]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.0])
def test_answers_equal_transformers(opened: Any, early_stopping: Any, length_penalty: float) -> None:
    path, model = opened
    random = Random(f"{early_stopping} {length_penalty}")
    with LLM(path, policy="exact", kv_cache="fp32", max_model_len=128, check=True) as llm:
        for prompt in PROMPTS:
            stops = random.sample(range(llm.facts.vocabulary_size), 40)
            params = SamplingParams(
                use_beam_search=True,
                n=random.choice((2, 3, 5)),
                max_tokens=random.choice((1, 6, 14)),
                min_tokens=random.choice((0, 1)),
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                stop_token_ids=stops,
                ignore_eos=True,
            )
            assert ours(llm, prompt, params) == theirs(model, prompt, params, stops), params


WORDS = ("the", "in", "ten", "no", "noon", "inner")
"""Texts of these, one after the other, are a language that needs no grammar to be understood."""


class Texts:
    """Which tokens may follow in a text of WORDS: by what may be left of the word that has begun ("" between two)."""

    def __init__(self, llm: LLM, end: int) -> None:
        self.tokens = [llm.tokenizer.decode([token]) for token in range(llm.facts.vocabulary_size)]
        self.end = end

    def left(self, text: str) -> set[str]:
        states = {""}
        for letter in text:
            begun = {word for state in states for word in ([state] if state else WORDS)}
            states = {word[1:] for word in begun if word[0] == letter}
        return states

    def allowed(self, answer: list[int]) -> list[int]:
        text = "".join(self.tokens[token] for token in answer)
        going_on = [token for token, more in enumerate(self.tokens) if more and self.left(text + more)]
        return going_on + [self.end] * bool(text and "" in self.left(text))

    def spellings(self, text: str) -> Iterator[tuple[int, ...]]:
        """Every way to write it in tokens."""
        if not text:
            yield ()
        for token, begun in enumerate(self.tokens):
            if begun and text.startswith(begun):
                yield from ((token, *rest) for rest in self.spellings(text[len(begun) :]))


END = 2


@pytest.fixture(scope="module")
def llm(opened: Any) -> Iterator[LLM]:
    with LLM(opened[0], policy="exact", kv_cache="fp32", max_model_len=128, check=True) as made:
        yield made


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beside_a_grammar_answers_equal_transformers(opened: Any, llm: LLM, early_stopping: Any) -> None:
    texts, random = Texts(llm, END), Random(early_stopping)
    structured = StructuredOutput("regex", f"({'|'.join(WORDS)})+")
    for prompt in PROMPTS:
        params = SamplingParams(
            use_beam_search=True,
            n=random.choice((2, 4, 7)),
            max_tokens=random.choice((5, 9)),
            length_penalty=random.choice((0.0, 1.0, -1.0)),
            early_stopping=early_stopping,
            stop_token_ids=[END],
            ignore_eos=True,
        )
        found = ours(llm, prompt, params, structured)
        assert found == theirs(opened[1], prompt, params, [END], texts.allowed), params
        assert found != ours(llm, prompt, params)


def test_few_answers_are_all_found_in_order(opened: Any, llm: LLM) -> None:
    """A choice ends where its last letter is written, and has fewer first tokens than there are beams; every way to
    write it in tokens is an answer. Scores are the model's own log-probabilities."""
    texts, prompt = Texts(llm, END), PROMPTS[0]
    everything = [ids for word in ("then", "in", "no") for ids in texts.spellings(word)]
    with torch.no_grad():
        scores = {}
        for ids in everything:
            logprobs = opened[1](torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            told = [float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(ids)]
            scores[ids] = sum(told)
    expected = sorted(everything, key=lambda ids: -scores[ids])
    params = {"use_beam_search": True, "max_tokens": 9, "length_penalty": 0.0, "logprobs": 0}
    choice = StructuredOutput("choice", ["then", "in", "no"])
    (output,) = llm.generate([prompt], SamplingParams(n=len(expected), **params), structured=choice)  # type: ignore[arg-type]
    assert [one.token_ids for one in output.outputs] == expected
    assert {one.finish_reason for one in output.outputs} == {"stop"}
    for one in output.outputs:
        told = [entry.logprob for entry in one.logprobs or ()]
        assert sum(told) == pytest.approx(scores[one.token_ids], abs=1e-4)
    with pytest.raises(LinnetError, match=f"accepted is at most {len(expected)}"):
        llm.generate([prompt], SamplingParams(n=len(expected) + 1, **params), structured=choice)  # type: ignore[arg-type]
