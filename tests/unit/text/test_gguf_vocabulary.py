# SPDX-License-Identifier: Apache-2.0
"""A directory's tokenizer written as GGUF metadata and read back: the same ids for every text."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from varied_text import varied_text

import linnet.demo
from linnet.errors import CheckpointError, UnsupportedError
from linnet.gguf import GgufModel, GgufWriter
from linnet.text import Tokenizer
from linnet.text.gguf_directory import tokenizer_files
from linnet.text.gguf_vocabulary import gguf_vocabulary

DEMO = Path(linnet.demo.__file__).parent / "model"
ROWS = 2048


def written(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    with path.open("wb") as file:
        GgufWriter(file, {"general.architecture": "llama", **metadata}, [])
    return Tokenizer.open(path)


def sentence_piece(directory: Path) -> Path:
    """A small BPE with bytes for what has no piece, trained here."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
         tokenizers.decoders.Strip(" ", 1)]
    )  # fmt: skip
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator([varied_text(seed, ()) for seed in range(200)], trainer)
    record = json.loads(backend.to_str())
    record["added_tokens"] = record["added_tokens"][:3]
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(record))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return directory


@pytest.mark.parametrize("kind", ["byte level", "sentence piece"])
def test_every_text_has_the_same_ids(kind: str, tmp_path: Path) -> None:
    directory = DEMO if kind == "byte level" else sentence_piece(tmp_path / "model")
    ours = Tokenizer.open(directory)
    again = written(tmp_path / "model.gguf", gguf_vocabulary(directory, ROWS))
    for seed in range(300):
        text = varied_text(seed, ("<|end|>", "</s>"))
        assert again.encode(text) == ours.encode(text), f"seed {seed}"
    assert again.adds_bos == ours.adds_bos
    assert set(ours.eos_token_ids) <= set(again.eos_token_ids)
    for name in ("bos_token", "eos_token", "unk_token"):
        assert again.named_tokens.get(name) == ours.named_tokens.get(name)
    assert again.templates.sources == ours.templates.sources


def test_ids_without_a_token_are_filled_up(tmp_path: Path) -> None:
    metadata = gguf_vocabulary(DEMO, ROWS + 7)
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{ROWS + 6}]"
    assert np.bincount(metadata["tokenizer.ggml.token_type"])[5] == 7
    with pytest.raises(CheckpointError, match="token ids reach 2047, the embedding has 100 rows"):
        gguf_vocabulary(DEMO, 100)


def test_the_files_of_a_directory_come_back(tmp_path: Path) -> None:
    written(tmp_path / "model.gguf", gguf_vocabulary(DEMO, ROWS))
    directory = tmp_path / "again"
    directory.mkdir()
    for name, text in tokenizer_files(tmp_path / "model.gguf").items():
        (directory / name).write_text(text)
    ours, again = Tokenizer.open(DEMO), Tokenizer.open(directory)
    for seed in range(100):
        text = varied_text(seed, ("<|end|>",))
        assert again.encode(text) == ours.encode(text)
    assert again.templates.sources == ours.templates.sources


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "only BPE tokenizers are written"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a way that llama.cpp has no name for"),
    ],
)
def test_what_a_gguf_file_cannot_say(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    record = json.loads(path.read_text()) | change
    if record["model"]["type"] == "WordPiece":
        record["model"] |= {"unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        record["model"]["vocab"] = {"a": 0}
        record["added_tokens"], record["decoder"], record["pre_tokenizer"] = [], None, None
    path.write_text(json.dumps(record))
    with pytest.raises(UnsupportedError, match=message):
        gguf_vocabulary(tmp_path / "model", ROWS)


def test_a_file_with_such_a_vocabulary_is_ggml_s(tmp_path: Path) -> None:
    written(tmp_path / "model.gguf", gguf_vocabulary(DEMO, ROWS))
    with GgufModel(tmp_path / "model.gguf") as model:
        assert model.metadata.text("tokenizer.ggml.pre") == "qwen2"
        assert len(model.metadata["tokenizer.ggml.tokens"]) == ROWS
