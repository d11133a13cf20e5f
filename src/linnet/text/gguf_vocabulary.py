# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model directory as a GGUF file's metadata: the inverse of gguf_tokenizer.py.

Byte-level BPE keeps its merges and names its way of cutting text (``tokenizer.ggml.pre``), which must be one that
llama.cpp knows. A BPE with bytes for what has no piece becomes SentencePiece's: a piece's score is minus the rank of
the first merge that makes it, so that the best-scored pair is always the one that BPE merges first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.text.files import CONFIG_BYTES, TOKENIZER_BYTES, optional_json_object, read_json_object
from linnet.text.gguf_pretokenizers import BYTE_LEVEL, GPT2_PATTERN, PRE_TOKENIZERS, SENTENCE_PIECE
from linnet.text.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from linnet.text.template import ChatTemplates
from linnet.text.tokenizer import Tokenizer

_NAMED = {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


def gguf_vocabulary(directory: Path, vocabulary_size: int) -> dict[str, Any]:
    """``tokenizer.*`` for a model with ``vocabulary_size`` rows in its embedding.

    Raises CheckpointError: no or a damaged tokenizer; UnsupportedError: one that a GGUF file cannot say.
    """
    source = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_directory(directory)
    record = read_json_object(source, TOKENIZER_BYTES)
    model = record.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise UnsupportedError(f"{source}: only BPE tokenizers are written to GGUF files")
    tokens, types = _tokens(record, tokenizer, vocabulary_size, str(source))
    if model.get("byte_fallback"):
        kind = _sentence_piece(record, tokens, types)
    else:
        kind = _byte_level(record, str(source))
    return {
        **kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        **_special(tokenizer, directory),
        **_templates(directory),
    }


def _tokens(
    record: Mapping[str, Any], tokenizer: Tokenizer, vocabulary_size: int, where: str
) -> tuple[list[str], list[int]]:
    """Every id's text and kind; ids that nobody has are filled up, as many as the embedding has rows."""
    vocabulary: dict[str, int] = dict(record["model"]["vocab"])
    kinds: dict[int, int] = {}
    for added in record.get("added_tokens") or []:
        vocabulary[added["content"]] = added["id"]
        kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    for token in tokenizer.special_token_ids:
        kinds[token] = CONTROL
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocabulary_size:
        raise CheckpointError(f"{where}: token ids reach {largest}, the embedding has {vocabulary_size} rows")
    tokens = [f"[PAD{index}]" for index in range(vocabulary_size)]
    types = [UNUSED] * vocabulary_size
    for text, index in vocabulary.items():
        tokens[index], types[index] = text, kinds.get(index, NORMAL)
    return tokens, types


def _byte_level(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    patterns = _patterns(record.get("pre_tokenizer"))
    whole = bool(record["model"].get("ignore_merges"))
    known = [name for name, rule in PRE_TOKENIZERS.items() if name and rule.patterns == patterns]
    exact = [name for name in known if PRE_TOKENIZERS[name].whole_pieces == whole]
    if not exact:
        raise UnsupportedError(
            f"{where}: text is cut by {list(patterns or ())!r:.200}"
            f"{' and whole pieces are taken first' if whole else ''}, a way that llama.cpp has no name for"
        )
    return {
        "tokenizer.ggml.model": BYTE_LEVEL,
        "tokenizer.ggml.pre": exact[0],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(record)],
    }


def _patterns(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The patterns that cut text one after the other; None if it is cut in another way."""
    if not isinstance(pre_tokenizer, dict):
        return None
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex", ""))
        elif kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            patterns.extend([GPT2_PATTERN] if step.get("use_regex", True) else [])
        else:
            return None
    return tuple(patterns)


def _sentence_piece(record: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    unknown = record["model"].get("unk_token")
    for index, token in enumerate(tokens):
        if types[index] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[index] = BYTE
        elif token == unknown:
            types[index] = UNKNOWN
    ids = {token: index for index, token in enumerate(tokens)}
    scores = np.full(len(tokens), -1e6, np.float32)
    made: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(record)):
        made.setdefault(left + right, rank)
    for place, (piece, _) in enumerate(sorted(made.items(), key=lambda item: item[1])):
        if piece in ids:
            scores[ids[piece]] = -place
    text = json.dumps([record.get("normalizer"), record.get("pre_tokenizer")])
    prefix = '"Prepend"' in text or ('"Metaspace"' in text and '"prepend_scheme": "never"' not in text)
    return {
        "tokenizer.ggml.model": SENTENCE_PIECE,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _merges(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, which newer files hold as lists and older ones as texts."""
    pairs = []
    for merge in record["model"].get("merges") or []:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        pairs.append((left, right))
    return pairs


def _special(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"tokenizer.ggml.add_bos_token": tokenizer.adds_bos}
    if tokenizer.bos_token_id is not None:
        found["tokenizer.ggml.bos_token_id"] = tokenizer.bos_token_id
    ends = tokenizer.encode(tokenizer.named_tokens["eos_token"], False) if "eos_token" in tokenizer.named_tokens else []
    eos = ends[:1] if len(ends) == 1 else list(tokenizer.eos_token_ids[:1])
    if eos:
        found["tokenizer.ggml.eos_token_id"] = eos[0]
    config = optional_json_object(directory / "config.json", CONFIG_BYTES)
    for theirs, ours in _NAMED.items():
        token = tokenizer.named_tokens.get(theirs)
        ids = tokenizer.encode(token, False) if token else []
        number = ids[0] if len(ids) == 1 else config.get(f"{theirs}_id")
        if isinstance(number, int) and number >= 0:
            found[f"tokenizer.ggml.{ours}"] = number
    return found


def _templates(directory: Path) -> dict[str, Any]:
    sources = ChatTemplates.from_directory(
        directory, optional_json_object(directory / "tokenizer_config.json", CONFIG_BYTES)
    ).sources
    found: dict[str, Any] = {}
    if "default" in sources:
        found["tokenizer.chat_template"] = sources["default"]
    others = sorted(sources.keys() - {"default"})
    if others:
        found["tokenizer.chat_templates"] = others
        found |= {f"tokenizer.chat_template.{name}": sources[name] for name in others}
    return found
