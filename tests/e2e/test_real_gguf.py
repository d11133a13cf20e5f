# SPDX-License-Identifier: Apache-2.0
"""Files that people use, as they lie on the disk: SmolLM2-135M-Instruct (Q4_1) and Gemma 3 270M (Q4_K_M)."""

from pathlib import Path

import pytest

from linnet.api import LLM, SamplingParams
from linnet.models import load_model

pytestmark = pytest.mark.real

GREEDY = SamplingParams(temperature=0.0, max_tokens=32)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_smollm2_knows_the_capital_of_france_and_stops(real_gguf: Path) -> None:
    """In exact arithmetic, as transformers on the dequantised weights. With int8 activations another word, which exact
    arithmetic puts second, can come first: its loss is what holds then."""
    with LLM(real_gguf, policy="exact", max_model_len=256, max_sequences=2, tile_cache=False) as llm:
        assert llm.source.parameters == 134_515_008
        output = llm.chat(QUESTION, GREEDY)[0].outputs[0]
        ids = llm.tokenizer.encode_chat(llm.tokenizer.apply_chat_template(QUESTION) + output.text)
        exact = llm.score([ids])[0]
    assert (output.text, output.finish_reason) == ("The capital of France is Paris.", "stop")
    with LLM(real_gguf, policy="fast", max_model_len=256, max_sequences=2, tile_cache=False) as llm:
        fast = llm.score([ids])[0]
    assert float(exact[-7:].mean()) > -0.5
    assert abs(float(fast.mean() - exact.mean())) < 0.1


def test_gemma3_goes_on_sensibly(gemma_gguf: Path) -> None:
    """A base model: no template, BOS in front."""
    source = load_model(gemma_gguf)
    layer = source.spec.layers[0]
    assert (source.spec.hidden_size, len(source.spec.layers), layer.mixer.heads, layer.mixer.head_size) == (
        640,
        18,
        4,
        256,
    )
    assert [index for index, layer in enumerate(source.spec.layers) if layer.mixer.window is None] == [5, 11, 17]
    source.checkpoint.close()
    prompts = ["The three primary colours are red,", "2, 4, 6, 8,"]
    with LLM(gemma_gguf, max_model_len=256, max_sequences=2, tile_cache=False) as llm:
        found = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=8))
    first = [output.outputs[0].text.strip(" ,.").split()[0].strip(",") for output in found]
    assert first[0] in ("blue", "yellow")  # in exact arithmetic the two are nearly a tie
    assert first[1] == "10"
