# SPDX-License-Identifier: Apache-2.0
"""Tiny random embedding models on disk, as sentence-transformers lays them out: a BERT, a Qwen3 without its head."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tiny_llama import SPECIALS, byte_level_tokenizer, write_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from linnet.models.families import arch_spec
from linnet.models.inventory import required_tensors

WORDS = (
    "the",
    "cat",
    "dog",
    "rain",
    "in",
    "##s",
    "##ing",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "##a",
    "##b",
    "##e",
    "##o",
    "!",
)
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}


def word_piece_tokenizer() -> Tokenizer:
    """What BERT's tokenizer.json holds: lower case, words and their parts, [CLS] in front and [SEP] behind."""
    vocabulary = {token: place for place, token in enumerate((*BERT_SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    around = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=around
    )
    return tokenizer


def write_pooling(directory: Path, pooling: str) -> None:
    """modules.json and the pooling's folder."""
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{name}": name == MODES[pooling] for name in (*MODES.values(), "max_tokens")}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))


def _write_model(directory: Path, config: dict[str, Any], seed: int) -> None:
    random, tensors = np.random.default_rng(seed), {}
    for name, shape in required_tensors(arch_spec(config)).items():
        gain = "norm" in name.lower() and name.endswith("weight")
        bare = name.removeprefix("bert.").removeprefix("model.")
        tensors[bare] = (float(gain) + random.normal(0, 0.1 if gain else 0.4, shape)).astype(np.float32)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_tiny_bert(directory: Path, pooling: str = "mean", seed: int = 0) -> Path:
    """Hidden 32, 2 layers, 4 heads, 64 positions."""
    tokenizer = word_piece_tokenizer()
    write_tokenizer(directory, json.loads(tokenizer.to_str()), cls_token="[CLS]", sep_token="[SEP]")
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
        "vocab_size": tokenizer.get_vocab_size(), "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip
    _write_model(directory, config, seed)
    write_pooling(directory, pooling)
    return directory


def write_tiny_qwen3_embedding(directory: Path, seed: int = 0) -> Path:
    """Hidden 32, 2 layers; the tokenizer puts the end of a text behind it, whose hidden state is the embedding."""
    tokenizer = byte_level_tokenizer()
    end = SPECIALS[0]
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}},
    }  # fmt: skip
    write_tokenizer(directory, tokenizer, eos_token=end)
    config = {
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
        "max_position_embeddings": 256, "vocab_size": len(tokenizer["model"]["vocab"]), "tie_word_embeddings": True,
        "eos_token_id": 0,
    }  # fmt: skip
    _write_model(directory, config, seed)
    write_pooling(directory, "last")
    return directory
