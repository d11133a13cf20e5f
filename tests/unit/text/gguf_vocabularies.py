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
