# SPDX-License-Identifier: Apache-2.0
"""Tiny random embedding models on disk, as sentence-transformers lays them out: a BERT, an XLM-R, a Qwen3 without its
head."""

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


UNIGRAM_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
UNIGRAM_PIECES = (
    *((token, 0.0) for token in UNIGRAM_SPECIALS), ("\u2581", -2.0), ("\u2581the", -3.0), ("\u2581rain", -4.0),
    ("at", -4.5), ("in", -5.0), *((letter, -6.0 - place / 8) for place, letter in enumerate("abcdehinorst!")),
    ("<mask>", 0.0),
)  # fmt: skip
"""XLM-R's: pieces with the logarithms of their probabilities."""


def unigram_tokenizer() -> Tokenizer:
    """What XLM-R's tokenizer.json holds: words, the likeliest pieces of each, <s> in front and </s> behind."""
    tokenizer = Tokenizer(models.Unigram(vocab=list(UNIGRAM_PIECES), unk_id=3, byte_fallback=False))
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.add_special_tokens([*UNIGRAM_SPECIALS, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
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


def write_tiny_xlm_r(directory: Path, pooling: str = "cls", seed: int = 0) -> Path:
    """Hidden 32, 2 layers, 4 heads, 64 positions behind the two that no token has."""
    tokenizer = unigram_tokenizer()
    write_tokenizer(directory, json.loads(tokenizer.to_str()), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = {
        "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 66, "layer_norm_eps": 1e-5,
        "vocab_size": tokenizer.get_vocab_size(), "type_vocab_size": 1, "hidden_act": "gelu", "pad_token_id": 1,
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
