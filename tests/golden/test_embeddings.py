# SPDX-License-Identifier: Apache-2.0
"""Embeddings against transformers' hidden states, exact fp32, in one piece and in chunks, on both backends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="golden hidden states need transformers")
import torch
import transformers
from tiny_encoder import write_tiny_bert, write_tiny_qwen3_embedding
from tiny_llama import write_tiny_llama

from linnet.api import LLM

PROMPTS = [[5, 9, 33, 17, 60, 2, 8], [40], list(range(30, 70)), [40, 41]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny_llama(tmp_path_factory.mktemp("embeddings"), spread=0.3)
    return path, transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_hidden_states_equal_transformers(opened: Any, backend: str, chunk: int | None) -> None:
    path, model = opened
    with LLM(path, policy="exact", kv_cache="fp32", backend=backend, check=True, max_chunk_tokens=chunk) as llm:
        last, mean = llm.embed(PROMPTS), llm.embed(PROMPTS, pooling="mean")
        unit = llm.embed(PROMPTS, normalize=True)
    for index, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            wanted = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].numpy()
        assert last[index].dtype == mean[index].dtype == np.float32
        assert np.abs(last[index] - wanted[-1]).max() < 1e-5
        assert np.abs(mean[index] - wanted.mean(0)).max() < 1e-5
        assert np.abs(unit[index] - wanted[-1] / np.linalg.norm(wanted[-1])).max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_bert_as_sentence_transformers_lays_it_out(pooling: str, tmp_path: Path) -> None:
    """What its modules say: the Transformer's last hidden states, pooled, normalised."""
    path = write_tiny_bert(tmp_path, pooling)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    texts = ["the cat", "Rains in a dog!", "cab"]
    with LLM(path, policy="exact", kv_cache="fp32") as llm:
        found = llm.embed(texts, normalize=True)
    for one, text in zip(found, texts, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = states.mean(0) if pooling == "mean" else states[0]
        assert np.abs(one - (wanted / wanted.norm()).numpy()).max() < 1e-5


def test_a_qwen3_of_its_last_token(tmp_path: Path) -> None:
    path = write_tiny_qwen3_embedding(tmp_path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    for chunk in (None, 3):
        with LLM(path, policy="exact", kv_cache="fp32", max_model_len=64, max_chunk_tokens=chunk) as llm:
            (found,) = llm.embed("in the rain", normalize=True)
        with torch.no_grad():
            wanted = model(**tokenizer("in the rain", return_tensors="pt")).last_hidden_state[0, -1]
        assert np.abs(found - (wanted / wanted.norm()).numpy()).max() < 1e-5
