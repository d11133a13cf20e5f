# SPDX-License-Identifier: Apache-2.0
"""Models written as GGUF: Linnet reads back the same model to the last bit, transformers computes the same logits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import GEMMA2, GEMMA3, TINY_MODELS, VOCABULARY, TinyModel, gated, reference_logits, write

from linnet.errors import UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.convert import to_gguf
from linnet.models import load_model

WRITTEN = (
    "llama-1", "llama-2-biases", "llama-3-tied", "llama-head-size", "llama-yarn", "mistral", "mistral-no-window",
    "qwen2", "qwen3", "phi-3",
)  # fmt: skip
LOADED_BY_TRANSFORMERS = ("llama-1", "mistral-no-window", "qwen2")
"""Of the others its GGUF reader takes over less than the file says (biases, windows, rope factors, head sizes)."""
TOKENS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*"t0", *(f"t{index}" for index in range(VOCABULARY - 2))],
    "tokenizer.ggml.merges": ["t 0"],
}
PLAIN_SCALE = {"query_pre_attn_scalar": 16}
"""A file has no key for what queries are scaled by: it must be the head's size."""
GEMMAS = (
    TinyModel("gemma-2", lambda: transformers.Gemma2Config(**gated(**GEMMA2 | PLAIN_SCALE))),
    TinyModel("gemma-3", lambda: transformers.Gemma3TextConfig(**gated(**GEMMA3 | PLAIN_SCALE, num_hidden_layers=7))),
)
by_name = {tiny.name: tiny for tiny in (*TINY_MODELS, *GEMMAS)}


@pytest.mark.parametrize("name", [*WRITTEN, "gemma-2", "gemma-3"])
def test_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "model.gguf"
    write(by_name[name], source)
    with Checkpoint.open(source) as checkpoint:
        made = to_gguf(checkpoint, target, "F32", TOKENS, threads=2)
        with Checkpoint.open(target) as published:
            ours, theirs = load_model(checkpoint), load_model(published)
            assert published.names() == checkpoint.names()
            for tensor in checkpoint.names():
                one, other = published.tensor(tensor), checkpoint.tensor(tensor)
                assert np.array_equal(one, other) if made.exact else np.allclose(one, other, atol=1e-6), tensor
            if "llama-3" not in name:  # its rope rule becomes a table of factors: the same numbers in other words
                assert theirs.spec == replace(ours.spec, family=theirs.spec.family)
    assert made.exact == (not name.startswith("gemma")), "their gains are stored with 1 added, which rounds"
    assert made.verified is (True if made.exact else None)


@pytest.mark.parametrize("name", LOADED_BY_TRANSFORMERS)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "model.gguf"
    model = write(by_name[name], source)
    with Checkpoint.open(source) as checkpoint:
        to_gguf(checkpoint, target, "F32", TOKENS)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=target.name, dtype=torch.float32)
    prompts = [[5, 17, 3, 90, 41, 8, 8, 2], [1]]
    for ours, theirs in zip(reference_logits(again, prompts), reference_logits(model, prompts), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2-window", "use_sliding_window"),
        ("phi-3-long-rope-short", "rope type 'longrope' is not written as GGUF"),
        ("gpt-neox", "a model of type 'gpt_neox' is not written as GGUF"),
    ],
)
def test_what_a_gguf_file_cannot_say_is_refused(name: str, message: str, tmp_path: Path) -> None:
    write(next(tiny for tiny in TINY_MODELS if tiny.name == name), tmp_path / "source")
    with Checkpoint.open(tmp_path / "source") as checkpoint, pytest.raises(UnsupportedError, match=message):
        to_gguf(checkpoint, tmp_path / "model.gguf", "F32", TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_query_scale_without_a_key_is_refused(tmp_path: Path) -> None:
    write(next(tiny for tiny in TINY_MODELS if tiny.name == "gemma-2"), tmp_path / "source")
    with Checkpoint.open(tmp_path / "source") as checkpoint:
        with pytest.raises(
            UnsupportedError, match="query_pre_attn_scalar is 20; readers of a GGUF file of gemma2 take 16"
        ):
            to_gguf(checkpoint, tmp_path / "model.gguf", "F32", TOKENS)
