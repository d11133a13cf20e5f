# SPDX-License-Identifier: Apache-2.0
"""Tokenizers out of GGUF files: ids as transformers, SentencePiece and the patterns' own library give them."""

import datetime
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

pytest.importorskip("gguf")
from gguf_vocabularies import SENTENCES, byte_level_vocabulary, write_byte_level, write_sentence_piece
from varied_text import varied_text

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.text import Tokenizer
from linnet.text.gguf_merges import sentence_piece_merges
from linnet.text.gguf_pretokenizers import PRE_TOKENIZERS

SPECIAL = ("<|begin|>", "<|im_end|>", "<｜end▁of▁sentence｜>", "<think>")


@pytest.fixture
def seed() -> int:
    """Another one each time, printed so that a failure can be repeated."""
    number = random.SystemRandom().randrange(1 << 30)
    print(f"seed {number}")
    return number


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35"])
def test_byte_level_ids_equal_transformers(pre: str, tmp_path: Path, seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    # transformers skips control tokens that are not written in the byte alphabet, and merges before it looks pieces up
    path = write_byte_level(tmp_path / "m.gguf", pre, special=SPECIAL[:2], user_defined=("<think>",))
    tiny_config(path, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="with_config.gguf")
    ours = Tokenizer.open(path)
    whole_pieces = PRE_TOKENIZERS[pre].whole_pieces
    if whole_pieces:
        theirs.backend_tokenizer.model.ignore_merges = True
    for number in range(seed, seed + 150):
        text = varied_text(number, SPECIAL[:2] + SPECIAL[3:])
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == ids, f"text of seed {number}"
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.adds_bos == whole_pieces


def tiny_config(path: Path, directory: Path) -> None:
    """transformers wants an architecture's sizes before it looks at the tokenizer."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(directory / "with_config.gguf", "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


ONE_NAME_PER_RULE = {rule: name for name, rule in PRE_TOKENIZERS.items()}.values()


@pytest.mark.parametrize("pre", ONE_NAME_PER_RULE)
def test_text_is_cut_by_the_rule_and_comes_back_whole(pre: str, tmp_path: Path, seed: int) -> None:
    ours = Tokenizer.open(write_byte_level(tmp_path / "m.gguf", pre or None))
    tokens, merges = byte_level_vocabulary()
    plain = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=PRE_TOKENIZERS[pre].whole_pieces,
        )
    )
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for number in range(seed, seed + 40):
        text = re.sub(" +", " ", varied_text(number))  # two spaces are a user-defined token of this vocabulary
        pieces = [(text, (0, len(text)))]
        for pattern in PRE_TOKENIZERS[pre].patterns:
            split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            pieces = [inner for piece, _ in pieces for inner in split.pre_tokenize_str(piece)]
        expected = [token for piece, _ in pieces for token in plain.encode(piece).ids]
        found = ours.encode(text, add_special_tokens=False)
        assert found == expected, f"text of seed {number}"
        assert ours.decode(found) == text


def test_patterns_cut_as_their_models_do() -> None:
    """A few words per rule, as those models' own tokenizer.json cuts them."""

    def cut(pre: str, text: str) -> list[str]:
        pieces = [text]
        for pattern in PRE_TOKENIZERS[pre].patterns:
            split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            pieces = [inner for piece in pieces for inner, _ in split.pre_tokenize_str(piece)]
        return pieces

    text = "It's 12345 DON'T\n\n  x"
    assert cut("gpt-2", text) == ["It", "'s", " 12345", " DON", "'", "T", "\n\n ", " x"]
    assert cut("llama-bpe", text) == ["It", "'s", " ", "123", "45", " DON", "'T", "\n\n", " ", " x"]
    assert cut("qwen2", text) == ["It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'T", "\n\n", " ", " x"]
    assert cut("starcoder", text) == ["It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'", "T", "\n\n ", " x"]
    assert cut("deepseek-llm", "Hello World 12,日本") == ["Hello", " World", " ", "12", ",", "日本"]
    assert cut("deepseek-v3", "Grüße 1234,日本") == ["Grüße", " ", "123", "4", ",", "日本"]
    assert cut("tekken", "HTTPServer") == ["HTTPServer"]
    assert cut("gpt-4o", "camelCase") == ["camel", "Case"]
    assert cut("default", "a=1234") == ["a", "=", "123", "4"]


def sentence_piece_model(directory: Path, **options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(directory / "sp"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "sp.model"))


def test_sentence_piece_ids_equal_its_own_library(tmp_path: Path, seed: int) -> None:
    model = sentence_piece_model(tmp_path)
    ours = Tokenizer.open(write_sentence_piece(tmp_path / "m.gguf", model))
    for number in range(seed, seed + 200):
        text = varied_text(number).replace("<s>", "").replace("</s>", "").replace("\u2581", "")
        assert ours.encode(text, add_special_tokens=False) == model.encode(text), f"text of seed {number}"
        assert ours.decode(model.encode(text)) == text
    assert ours.encode("x")[0] == ours.bos_token_id == 1
    assert ours.eos_token_ids == (2,)
    assert ours.unk_token_id == 0


def test_sentence_piece_without_prefix_and_with_pieces_of_its_own(tmp_path: Path, seed: int) -> None:
    """As Gemma's files: no space in front, runs of spaces and newlines and tags are user-defined pieces."""
    own = [
        *("\n" * count for count in range(1, 5)),
        *("\u2581" * count for count in range(2, 9)),
        "<table>",
        "[multimodal]",
    ]
    model = sentence_piece_model(
        tmp_path,
        add_dummy_prefix=False,
        user_defined_symbols=own,
        control_symbols=["<end_of_turn>"],
        split_by_unicode_script=False,
    )
    keys = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    ours = Tokenizer.open(write_sentence_piece(tmp_path / "m.gguf", model, keys, own))
    assert ours.eos_token_ids == (2, model.piece_to_id("<end_of_turn>"))
    assert not ours.adds_bos
    for number in range(seed, seed + 200):
        text = varied_text(number).replace("<s>", "").replace("</s>", "").replace("\u2581", "")
        while " " * 9 in text:  # runs longer than the longest piece: cut otherwise, see docs/gguf.md
            text = text.replace(" " * 9, " ")
        assert ours.encode(text) == model.encode(text), f"text of seed {number}"
        assert ours.decode(model.encode(text)) == text
    turn = ours.encode("a<end_of_turn>\n\n\n\n\n<table>")
    assert [ours.token(token) for token in turn] == ["a", "<end_of_turn>", "\n\n\n\n", "\n", "<table>"]


def test_merges_equal_those_that_transformers_works_out(seed: int) -> None:
    base = pytest.importorskip("transformers.tokenization_utils_base")
    rng = random.Random(seed)
    pieces = list({"".join(rng.choice("ab▁é日😀") for _ in range(rng.randint(1, 5))) for _ in range(400)})
    scores = np.array([-float(index) for index in range(len(pieces))])
    expected = base.generate_merges(
        {piece: index for index, piece in enumerate(pieces)}, dict(zip(pieces, scores, strict=True))
    )
    assert sentence_piece_merges(pieces, np.arange(len(pieces))) == expected
    assert len(expected) > 100
    rank = np.where(np.arange(len(pieces)) % 2 == 0, np.arange(len(pieces)), -1)
    made = {left + right for left, right in sentence_piece_merges(pieces, rank)}
    assert made == {left + right for left, right in expected if pieces.index(left + right) % 2 == 0}
    assert sentence_piece_merges([], np.arange(0)) == []


def test_special_tokens_and_ends(tmp_path: Path) -> None:
    ours = Tokenizer.open(write_byte_level(tmp_path / "m.gguf", "qwen2"))
    size = len(byte_level_vocabulary()[0])
    assert ours.vocabulary_size == size + 5
    assert ours.special_token_ids == {size, size + 1, size + 2}
    assert ours.named_tokens == {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    assert ours.eos_token_ids == (size + 1, size + 2), "the end of a turn is known by its text"
    text = "a<｜end▁of▁sentence｜>b  <think>"
    ids = ours.encode(text)
    assert [ours.token(token) for token in ids] == ["a", "<｜end▁of▁sentence｜>", "b", "  ", "<think>"]
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert ours.decode(ids) == "ab  <think>"


def test_bos_and_eos_are_added_as_the_file_says(tmp_path: Path) -> None:
    size = len(byte_level_vocabulary()[0])
    for pre, keys, around in [
        ("qwen2", {}, ([], [])),
        ("llama-bpe", {}, ([size], [])),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, ([], [])),
        (
            "qwen2",
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
            ([size], [size + 1]),
        ),
    ]:
        ours = Tokenizer.open(write_byte_level(tmp_path / "m.gguf", pre, keys=keys))
        inner = ours.encode("hello", add_special_tokens=False)
        assert ours.encode("hello") == [*around[0], *inner, *around[1]]
        assert ours.adds_bos == bool(around[0])


def test_ids_named_by_keys_and_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.padding_token_id": 1 << 30}
    ours = Tokenizer.open(write_byte_level(tmp_path / "m.gguf", "gpt-2", special=("<s>", "</s>"), keys=keys))
    size = len(byte_level_vocabulary()[0])
    assert ours.eos_token_ids == (7, size + 1)
    assert "pad_token" not in ours.named_tokens


def test_chat_templates(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools {{ strftime_now('%Y') }}",
    }
    path = write_byte_level(tmp_path / "m.gguf", "qwen2", keys=keys)
    ours = Tokenizer.open(path, clock=lambda: datetime.datetime(2001, 2, 3))
    assert ours.templates.names == ("default", "tool_use")
    messages = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(messages) == "<|begin|>[hi]"
    assert ours.apply_chat_template(messages, tools=[{"name": "f"}]) == "tools 2001"
    assert Tokenizer.open(write_byte_level(tmp_path / "n.gguf", "qwen2")).templates.names == ()


def test_a_directory_is_opened_as_before(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        Tokenizer.open(tmp_path / "absent")


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    import gguf

    def refusal(**entries: Any) -> str:
        path = tmp_path / "bad.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        given: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
        for key, value in {**given, **entries}.items():
            if isinstance(value, str):
                writer.add_string(f"tokenizer.ggml.{key}", value)
            elif value is not None:
                writer.add_array(f"tokenizer.ggml.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(LinnetError) as caught:
            Tokenizer.open(path)
        assert "bad.gguf" in str(caught.value)
        assert isinstance(caught.value, CheckpointError | UnsupportedError)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "tokenizer.ggml.model is 'rwkv'; supported are gpt2" in refusal(model="rwkv")
    assert "no tokenizer in the metadata" in refusal(model=None)
    assert "tokenizer.ggml.pre is 'klingon'" in refusal(pre="klingon")
    assert "tokenizer.ggml.tokens is missing or empty" in refusal(tokens=None)
    assert "'a' is token 0 and 2" in refusal(tokens=["a", "b", "a"])
    assert "token_type has 2 entries for 3 tokens" in refusal(token_type=[1, 1])
    assert "merges is missing" in refusal(merges=None)
    assert "merges has 'ab'; two tokens are needed" in refusal(merges=["ab"])
    assert "its tokenizer cannot be built" in refusal(merges=["a z"])
    assert "scores must be a list of 3 finite numbers" in refusal(model="llama", merges=None)
    assert "scores must be a list of 3 finite" in refusal(model="llama", merges=None, scores=[0.5, float("nan"), 1.5])
    assert "a list of texts is needed" in refusal(tokens=[1, 2, 3])
    assert "a run of spaces twice" in refusal(
        model="llama", tokens=["a", "  ", "\u2581\u2581"], token_type=[1, 4, 1], scores=[-1.5, -2.5, -3.5]
    )
