# SPDX-License-Identifier: Apache-2.0
"""Beam search against transformers' ``generate(num_beams=…)``: the same answers in the same order, exact fp32."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers", reason="golden answers need transformers")
import torch
import transformers
from tiny_llama import write_tiny_llama

from linnet.api import LLM, SamplingParams

PROMPTS = [[5, 9, 33, 17, 60, 2, 8], [40, 41], list(range(30, 70))]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny_llama(tmp_path_factory.mktemp("beams"), spread=0.3)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return path, model.eval()


def theirs(model: Any, prompt: list[int], params: SamplingParams, stops: list[int]) -> list[tuple[int, ...]]:
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
            return_dict_in_generate=True,
            output_scores=True,
        )
    answers = []
    for sequence in found.sequences.tolist():
        tokens = sequence[len(prompt) :]
        ends = [place for place, token in enumerate(tokens) if token in stops and place >= params.min_tokens]
        answers.append(tuple(tokens[: ends[0] + 1] if ends else tokens))
    return answers


def ours(llm: LLM, prompt: list[int], params: SamplingParams) -> list[tuple[int, ...]]:
    (output,) = llm.generate([prompt], params)
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
