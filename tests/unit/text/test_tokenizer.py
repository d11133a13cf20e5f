# SPDX-License-Identifier: Apache-2.0
"""Reading a tokenizer directory: special tokens, end-of-sequence ids, damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llama import byte_level_tokenizer, sentencepiece_tokenizer, write_tiny_llama, write_tokenizer

from linnet.errors import CheckpointError, ConfigError
from linnet.text import Tokenizer, files


def test_round_trip_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level_tokenizer(), eos_token="<|im_end|>"))
    text = "the café 😀\n<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[-1] == 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.removesuffix("<|im_end|>")
    assert tokenizer.decode([10_000, *ids, -1]) == tokenizer.decode(ids)
    assert tokenizer.token_bytes(tokenizer.token_id("Ġthe") or 0) == b" the"
    assert tokenizer.vocabulary_size == len(byte_level_tokenizer()["model"]["vocab"])


def test_bos_comes_from_the_post_processor_and_never_twice(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path / "sp", sentencepiece_tokenizer(), bos_token="<s>", eos_token="</s>")
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.adds_bos
    assert tokenizer.encode("the")[0] == 1
    assert tokenizer.encode("the", add_special_tokens=False)[0] != 1
    assert tokenizer.encode_chat("<s>the").count(1) == 1
    plain = write_tokenizer(tmp_path / "bl", byte_level_tokenizer(), bos_token="<|endoftext|>", add_bos_token=True)
    assert not Tokenizer.from_directory(plain).adds_bos  # as transformers 5: tokenizer.json decides


def test_end_of_sequence_ids_of_all_three_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level_tokenizer(), eos_token="<|im_end|>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0, "text_config": {"eos_token_id": 9}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (0, 1, 2, 9)


def test_tokens_that_only_the_config_declares_are_added(tmp_path: Path) -> None:
    base = byte_level_tokenizer()
    size = len(base["model"]["vocab"])
    declared = {str(size): {"content": "<tool>", "special": True}, "1": {"content": "<|im_start|>", "special": False}}
    tokenizer = Tokenizer.from_directory(
        write_tokenizer(tmp_path, base, added_tokens_decoder=declared, pad_token="<pad>", image_token="<image>")
    )
    assert tokenizer.encode("a<tool>b<pad>")[1] == size
    assert tokenizer.named_tokens["image_token"] == "<image>"
    assert 1 not in tokenizer.special_token_ids


@pytest.mark.parametrize("eos", ["2", 1.5, [None], True, {"a": 1}, -7, 1 << 40])
def test_impossible_end_of_sequence_ids_are_refused(tmp_path: Path, eos: object) -> None:
    write_tokenizer(tmp_path, byte_level_tokenizer())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id is"):
        Tokenizer.from_directory(tmp_path)


def test_damage_is_one_sentence_naming_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.dumps(byte_level_tokenizer())
    write_tokenizer(tmp_path, byte_level_tokenizer())
    deep = whole[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    huge = byte_level_tokenizer()
    huge["model"]["vocab"]["zz"] = 1 << 31
    for text in (whole[: len(whole) // 2], "", "[]", "null", '{"model": 3}', deep, json.dumps(huge)):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe" + whole.encode())
    with pytest.raises(CheckpointError, match="not UTF-8"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    monkeypatch.setattr("linnet.text.tokenizer.TOKENIZER_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1000"):
        Tokenizer.from_directory(tmp_path)
    monkeypatch.undo()
    for name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text("{")
        with pytest.raises(CheckpointError, match=name):
            Tokenizer.from_directory(tmp_path)
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="not a directory"):
        Tokenizer.from_directory(tmp_path / "missing")
    assert files.TOKENIZER_BYTES >= 1 << 26  # real tokenizers have tens of megabytes


def test_truncated_anywhere_never_escapes_the_error_type(tmp_path: Path) -> None:
    whole = json.dumps(sentencepiece_tokenizer(), ensure_ascii=False).encode()
    write_tokenizer(tmp_path, byte_level_tokenizer())
    for size in range(0, len(whole) - 1, 97):
        (tmp_path / "tokenizer.json").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            Tokenizer.from_directory(tmp_path)


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path, byte_level_tokenizer()))
    with pytest.raises(ConfigError, match="UTF-8"):
        tokenizer.encode("a\ud800b")
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


def test_importing_text_engine_and_api_is_lean(tmp_path: Path) -> None:
    """Neither torch nor transformers, and not from opening a tokenizer either."""
    write_tiny_llama(tmp_path)
    code = (
        "import sys, time; start = time.perf_counter(); import linnet.api\n"
        "from linnet.text import Tokenizer\n"
        f"tokenizer = Tokenizer.from_directory({str(tmp_path)!r})\n"
        "tokenizer.apply_chat_template([{'role': 'user', 'content': 'hi'}])\n"
        "bad = [name for name in ('torch', 'transformers', 'fastapi', 'matplotlib', 'scipy') if name in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
