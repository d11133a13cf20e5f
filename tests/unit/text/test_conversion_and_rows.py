# SPDX-License-Identifier: Apache-2.0
"""Tokenizers without a tokenizer.json, and rows of tokens for calibration."""

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import byte_alphabet, byte_level_tokenizer, sentencepiece_tokenizer, write_tokenizer

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.text import Tokenizer, calibration_rows, convert, document_rows, encode_document, rows_digest


def slow_directory(directory: Path) -> Path:
    """GPT-2's old form: vocab.json and merges.txt."""
    directory.mkdir()
    tokens = ["<|endoftext|>", *byte_alphabet(), "th", "the", "Ġthe"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return directory


def test_converted_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    directory, cache = slow_directory(tmp_path / "model"), tmp_path / "cache"
    first = Tokenizer.from_directory(directory, cache_directory=cache)
    assert first.decode(first.encode(" the thé")) == " the thé"
    assert len(first.encode(" the")) == 1

    def refuse(*_: object) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(convert, "_run", refuse)
    assert Tokenizer.from_directory(directory, cache_directory=cache).encode(" the") == first.encode(" the")
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json", "merges.txt", "tokenizer_config.json", "vocab.json"
    ]  # fmt: skip
    assert not list(cache.glob(".converting-*"))


def test_nothing_is_imported_from_the_folder_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = slow_directory(tmp_path / "model")
    for name in ("transformers", "json", "tokenizers", "numpy"):
        (directory / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.chdir(directory)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with contextlib.suppress(CheckpointError, UnsupportedError):
        convert.convert_tokenizer(Path("."), tmp_path / "cache")
    assert not (tmp_path / "executed").exists()


def test_without_transformers_it_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 77\n")
    bare.chmod(0o755)
    with pytest.raises(UnsupportedError, match="pip install transformers"):
        convert.convert_tokenizer(slow_directory(tmp_path / "model"), tmp_path / "cache", str(bare))
    bare.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 1\n")
    with pytest.raises(CheckpointError, match="it is broken"):
        convert.convert_tokenizer(tmp_path / "model", tmp_path / "cache", str(bare))


def test_a_directory_without_any_tokenizer_lists_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected tokenizer.json or one of .*tokenizer\.model"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_rows_are_seeded_hashed_and_do_not_overlap(tmp_path: Path, adds_bos: bool) -> None:
    description = sentencepiece_tokenizer() if adds_bos else byte_level_tokenizer()
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, description, bos_token="<s>" if adds_bos else None))
    text = "\n".join(f"the line {index} in a long text" for index in range(400))
    rows = calibration_rows(tokenizer, text, rows=16, length=32, seed=7)
    assert rows.token_ids.shape == (16, 32)
    assert rows.token_ids.dtype == np.int32
    again = calibration_rows(tokenizer, text, rows=16, length=32, seed=7)
    assert again.digest == rows.digest == rows_digest(rows.token_ids)
    other = calibration_rows(tokenizer, text, rows=16, length=32, seed=8)
    assert other.digest != rows.digest
    assert (rows.token_ids[:, 0] == 1).all() == adds_bos
    everything = encode_document(tokenizer, text)
    body = rows.token_ids[:, 1:] if adds_bos else rows.token_ids
    windows = [tuple(row) for row in body]
    stream = [tuple(everything[at : at + body.shape[1]]) for at in range(0, len(everything), body.shape[1])]
    places = [stream.index(window) for window in windows]
    assert len(set(places)) == 16


def test_rows_full_of_documents_say_where_each_ends(tmp_path: Path) -> None:
    """Every document whole and in one piece, but for those that a row's end cuts."""
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level_tokenizer()))
    documents = [chr(97 + number) * (5 + number) for number in range(20)]
    rows = document_rows(tokenizer, documents, 5, 32, 3, "many")
    assert rows.token_ids.shape == (5, 32)
    assert rows.lengths is not None
    assert all(sum(lengths) == 32 for lengths in rows.lengths)
    pieces = np.split(rows.token_ids.reshape(-1), np.cumsum(rows.sequences(range(5)))[:-1])
    whole = {tuple(tokenizer.encode(document)) for document in documents}
    assert sum(tuple(piece.tolist()) in whole for piece in pieces) >= len(pieces) - 2 * 5
    assert all(any(set(piece.tolist()) <= set(known) for known in whole) for piece in pieces)
    assert rows.take([2, 0]).sequences([1]) == list(rows.lengths[0])
    assert rows.digest == document_rows(tokenizer, documents, 5, 32, 3, "many").digest
    assert rows.digest != document_rows(tokenizer, documents, 5, 32, 4, "many").digest
    assert rows.digest != rows_digest(rows.token_ids)
    with pytest.raises(ConfigError, match="many has 290 tokens; 10 rows of 32 tokens need 320"):
        document_rows(tokenizer, documents, 10, 32, 3, "many")


def test_rows_refuse_what_cannot_be(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level_tokenizer()))
    with pytest.raises(ConfigError, match=r"has 3 tokens; 4 rows of 8 tokens need 32"):
        calibration_rows(tokenizer, "abc", rows=4, length=8, seed=0)
    for rows, length, seed in ((0, 8, 0), (1, 1, 0), (1, 8, -1), (1, 8, 1 << 64)):
        with pytest.raises(ConfigError, match=r"(calibration_rows|calibration_length|seed) is -?[0-9]+; accepted is "):
            calibration_rows(tokenizer, "abc", rows=rows, length=length, seed=seed)


def test_a_long_document_is_encoded_in_pieces_that_depend_on_the_text_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level_tokenizer()))
    text = "the one in a\n" * 120_000
    ids = encode_document(tokenizer, text)
    assert tokenizer.decode(ids.tolist()) == text
