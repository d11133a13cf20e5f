# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of SentencePiece's unigram model out of GGUF files: ids and texts as transformers' XLM-R has them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")
from gguf_vocabularies import character_table, unigram_vocabulary, write_unigram
from varied_text import varied_text

from linnet.errors import CheckpointError
from linnet.text import Tokenizer

RULES = {"\t": " ", "\n": " ", "\u3000": " ", "ﬁ": "fi", "Ａ": "A", "①": "1", "é": "e", "\u200b": ""}
TEXTS = (
    "",
    " ",
    "the  quick\tbrown\n\nfox ",
    "ﬁne naïve café Ａ①\u200b\u3000x",
    "日本語のテキスト 🙂🙂",
    "a <mask> and </s> and <unk> of <pad>",
    "\u2581the\u2581the",
)


@pytest.fixture(scope="module")
def vocabulary() -> list[tuple[str, float]]:
    # as a file has them: of 32 bits
    return [(piece, float(np.float32(score))) for piece, score in unigram_vocabulary()]


@pytest.fixture
def file(vocabulary: list[tuple[str, float]], tmp_path: Path) -> Path:
    return write_unigram(tmp_path / "m.gguf", vocabulary, character_table(RULES))


def test_the_table_of_characters_says_what_it_was_made_of() -> None:
    from tokenizers import normalizers

    table = normalizers.Precompiled(character_table(RULES))
    assert table.normalize_str("ﬁx Ａ①é\u200b\n.") == "fix A1e ."


def test_ids_equal_transformers(file: Path, vocabulary: list[tuple[str, float]]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs: Any = transformers.XLMRobertaTokenizer(vocab=vocabulary, _spm_precompiled_charsmap=character_table(RULES))
    ours = Tokenizer.open(file)
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    for text in (*TEXTS, *(varied_text(number, ("<s>", "</s>", "<mask>")) for number in range(seed, seed + 150))):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), repr(text)
    assert len({token for text in TEXTS for token in ours.encode(text)}) > 30
    named = {name: str(token) for name, token in theirs.special_tokens_map.items()}
    assert ours.named_tokens | {"cls_token": "<s>"} == named


def test_what_a_file_does_not_say_is_t5s(vocabulary: list[tuple[str, float]], tmp_path: Path) -> None:
    """An end and no beginning."""
    keys = dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"))
    without = Tokenizer.open(write_unigram(tmp_path / "m.gguf", vocabulary, b"", keys))
    assert without.encode("the")[0] != 0
    assert without.encode("the")[-1] == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.scores", [1.0, 2.0], "scores must be a list of .* finite numbers"),
        ("tokenizer.ggml.unknown_token_id", 1 << 20, None),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2, 3], "its tokenizer cannot be built"),
        ("tokenizer.ggml.precompiled_charsmap", "x", "precompiled_charsmap is 'x'; a list of numbers is needed"),
    ],
)
def test_what_cannot_be_so_is_said(
    key: str, value: Any, message: str | None, vocabulary: list[tuple[str, float]], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    if message is None:  # no token for what has no piece: only text that has some can be read
        assert Tokenizer.open(write_unigram(path, vocabulary, b"", {key: value})).encode("the")
        return
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.open(write_unigram(path, vocabulary, b"", {key: value}))
