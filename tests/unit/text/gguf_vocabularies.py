# SPDX-License-Identifier: Apache-2.0
"""Small vocabularies, learnt here from a few sentences, in GGUF files as converters write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

SENTENCES = [
    "The quick brown fox doesn't jump over 12 lazy dogs, it's 2024 already.",
    "def f(x):\n    return x ** 2  # a comment\n\n\nprint(f(10))",
    "Über naïve Straßen fährt man nicht, sagt der Fuchs; 3.14 war keine Zahl für ihn!",
    "日本語のテキスト。 你好世界, 한국어 텍스트. Привет, мир! مرحبا بالعالم 🙂🙂",
    "the the the of of and and in to a is it for    on\n\n that  with as",
] * 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_level_vocabulary(size: int = 420) -> tuple[list[str], list[str]]:
    """Tokens (bytes first) and merges of a byte-level BPE."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    found = tokenizer.get_vocab()
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return sorted(found, key=found.__getitem__), merges


def write_byte_level(
    path: Path,
    pre: str | None,
    *,
    special: tuple[str, ...] = ("<|begin|>", "<|im_end|>", "<｜end▁of▁sentence｜>"),
    user_defined: tuple[str, ...] = ("<think>", "  "),
    keys: dict[str, Any] | None = None,
) -> Path:
    """``special`` and ``user_defined`` tokens follow the learnt ones; the first special one is BOS, the second EOS."""
    tokens, merges = byte_level_vocabulary()
    types = [NORMAL] * len(tokens) + [CONTROL] * len(special) + [USER_DEFINED] * len(user_defined)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *special, *user_defined])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    return _finish(writer, keys)


def write_sentence_piece(
    path: Path, model: Any, keys: dict[str, Any] | None = None, user_defined: Sequence[str] = ()
) -> Path:
    """A SentencePieceProcessor's vocabulary as the converter for it writes it."""
    tokens, scores, types = [], [], []
    for index in range(model.vocab_size()):
        piece, kind = model.id_to_piece(index), NORMAL
        if model.is_unknown(index):
            kind = UNKNOWN
        elif model.is_control(index):
            kind = CONTROL
        elif model.is_byte(index):
            kind = BYTE
        elif piece in user_defined:
            kind = USER_DEFINED
            piece = piece.replace("\u2581", " ")
        tokens.append(piece)
        scores.append(model.get_score(index))
        types.append(kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    return _finish(writer, keys)


def _finish(writer: gguf.GGUFWriter, keys: dict[str, Any] | None) -> Path:
    for key, value in (keys or {}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Path(writer.path)


def unigram_vocabulary(size: int = 300) -> list[tuple[str, float]]:
    """Pieces of XLM-R's form with the logarithms of their probabilities, special ones first."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    trainer = trainers.UnigramTrainer(vocab_size=size, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    learnt = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"] if piece != "<unk>"]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*special, *learnt, ("<mask>", 0.0)]


def character_table(rules: dict[str, str]) -> bytes:
    """What SentencePiece compiles rules for characters to: a double array of 32-bit units, where every node has 256
    places of its own, in front of the texts that characters become."""
    texts, units = bytearray(), [0] * 256
    nodes: dict[bytes, int] = {b"": 0}
    for source, target in rules.items():
        key, at = source.encode(), 0
        for end in range(1, len(key) + 1):
            if key[:end] not in nodes:
                nodes[key[:end]] = len(units)
                units.extend([0] * 256)
            place, base = at + key[end - 1], nodes[key[:end]]
            leaf = units[place] & 1 << 8 or (1 << 8 if end == len(key) else 0)
            units[place] = key[end - 1] | leaf | (place ^ base) << 10
            at = base
        units[at] = len(texts) | 1 << 31
        texts += target.encode() + b"\0"
    array = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(array).to_bytes(4, "little") + array + bytes(texts)


def write_unigram(
    path: Path, vocabulary: list[tuple[str, float]], table: bytes, keys: dict[str, Any] | None = None
) -> Path:
    """As the converter of XLM-R writes it, but for what ``keys`` say."""
    special = {"<s>": CONTROL, "<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN, "<mask>": CONTROL}
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in vocabulary])
    writer.add_token_types([special.get(piece, NORMAL) for piece, _ in vocabulary])
    ids = {"bos": 0, "padding": 1, "eos": 2, "seperator": 2, "unknown": 3, "mask": len(vocabulary) - 1}
    said: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": place for name, place in ids.items()}
    said |= {f"tokenizer.ggml.add_{name}": True for name in ("bos_token", "eos_token", "space_prefix")}
    said["tokenizer.ggml.remove_extra_whitespaces"] = True
    said["tokenizer.ggml.scores"] = [score for _, score in vocabulary]
    said["tokenizer.ggml.precompiled_charsmap"] = table
    return _finish(writer, {key: value for key, value in (said | (keys or {})).items() if value not in (b"", None)})
