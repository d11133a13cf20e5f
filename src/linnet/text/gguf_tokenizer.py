# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a GGUF file carries in its metadata: vocabulary, merges, special tokens, chat templates.

Four kinds: byte-level BPE, with a rule for cutting text first (``gguf_pretokenizers``), SentencePiece's BPE with bytes
for what has no piece, its unigram model (Kudo 2018; T5, XLM-R), and BERT's words and their parts. What llama.cpp
assumes where a file is silent is assumed here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from linnet.errors import CheckpointError, UnsupportedError
from linnet.gguf import GgufModel, Metadata
from linnet.text.gguf_merges import sentence_piece_merges
from linnet.text.gguf_pretokenizers import (
    BYTE_LEVEL,
    ENDS_OF_GENERATION,
    PRE_TOKENIZERS,
    SENTENCE_PIECE,
    UNIGRAM,
    WORD_PIECE,
)
from linnet.text.parse import of_library, release_memory, without_collection
from linnet.text.template import ChatTemplates

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""``tokenizer.ggml.token_type``."""
_SPACE = "\u2581"
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""Hugging Face's names -> ggml's keys (its spelling)."""
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_WORD_PIECE_IDS = {
    "bos_token_id": 101, "unknown_token_id": 100, "seperator_token_id": 102, "padding_token_id": 0, "mask_token_id": 103
}  # fmt: skip
_SENTENCE_PIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_UNIGRAM_IDS = {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0}
"""Where a file of WordPiece, of SentencePiece, of its unigram model names none."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What ``Tokenizer`` is made of."""

    backend: tokenizers.Tokenizer
    config: dict[str, Any]
    eos_token_ids: frozenset[int]
    templates: ChatTemplates


@dataclass(frozen=True)
class _Vocabulary:
    metadata: Metadata
    tokens: list[str]
    types: npt.NDArray[Any]

    def ids(self, *types: int) -> list[int]:
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def id(self, key: str, default: int | None = None) -> int | None:
        """A token id from the metadata; one outside the vocabulary is none, as for llama.cpp."""
        found = self.metadata.integer(f"tokenizer.ggml.{key}", default)
        return found if found is not None and 0 <= found < len(self.tokens) else None


def read_gguf_tokenizer(path: Path, clock: Callable[[], datetime] = datetime.now) -> GgufTokenizer:
    """Raises CheckpointError for a file without a tokenizer or with a damaged one, UnsupportedError for a kind or a
    rule of cutting that nothing here knows."""
    with GgufModel(path) as model, without_collection():
        found = _read(path, model.metadata, clock)
    release_memory()
    return found


def _read(path: Path, metadata: Metadata, clock: Callable[[], datetime]) -> GgufTokenizer:
    kind = metadata.text("tokenizer.ggml.model")
    builders = {
        BYTE_LEVEL: _byte_level, SENTENCE_PIECE: _sentence_piece, UNIGRAM: _unigram, WORD_PIECE: _word_piece
    }  # fmt: skip
    if kind not in builders:
        if kind is None:
            raise CheckpointError(f"{path}: no tokenizer in the metadata (tokenizer.ggml.model)")
        raise UnsupportedError(
            f"{path}: tokenizer.ggml.model is {kind[:40]!r}; supported are {BYTE_LEVEL} (byte-level BPE), "
            f"{SENTENCE_PIECE} (SentencePiece), {UNIGRAM} (its unigram model) and {WORD_PIECE} (WordPiece)"
        )
    vocabulary = _read_vocabulary(metadata)
    templates = ChatTemplates(_templates(metadata), clock=clock, where=str(path))
    try:
        return builders[kind](vocabulary, templates)
    except BaseException as error:
        if not of_library(error) or isinstance(error, CheckpointError | UnsupportedError):
            raise
        raise CheckpointError(f"{path}: its tokenizer cannot be built ({str(error)[:200]})") from None


def _read_vocabulary(metadata: Metadata) -> _Vocabulary:
    where = f"{metadata.where}: tokenizer.ggml"
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{where}.tokens is missing or empty")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        first: dict[str, int] = {}
        twice = next(index for index, token in enumerate(tokens) if first.setdefault(token, index) != index)
        raise CheckpointError(f"{where}.tokens: {tokens[twice][:80]!r} is token {first[tokens[twice]]} and {twice}")
    types = metadata.numbers("tokenizer.ggml.token_type")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if types.shape != (len(tokens),):
        raise CheckpointError(f"{where}.token_type has {types.size} entries for {len(tokens)} tokens")
    return _Vocabulary(metadata, tokens, types)


def _byte_level(vocabulary: _Vocabulary, templates: ChatTemplates) -> GgufTokenizer:
    metadata = vocabulary.metadata
    name = metadata.text("tokenizer.ggml.pre", "") or ""
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise UnsupportedError(
            f"{metadata.where}: tokenizer.ggml.pre is {name[:40]!r}, a way of cutting text that is not known here; "
            f"known are {', '.join(filter(None, PRE_TOKENIZERS))}"
        )
    merges = metadata.texts("tokenizer.ggml.merges")
    if merges is None:
        raise CheckpointError(f"{metadata.where}: tokenizer.ggml.merges is missing")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids, merges=[_pair(merge, metadata.where) for merge in merges], ignore_merges=rule.whole_pieces
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    named = {theirs: vocabulary.id(ours) for theirs, ours in _NAMED.items()}
    _add_tokens(backend, vocabulary, vocabulary.ids(USER_DEFINED))
    return _finish(backend, vocabulary, templates, named, adds_bos=rule.adds_bos)


def _pair(merge: str, where: str) -> tuple[str, str]:
    """Two tokens with a space between; the first may itself begin with one."""
    at = merge.find(" ", 1)
    if at < 0:
        raise CheckpointError(f"{where}: tokenizer.ggml.merges has {merge[:80]!r}; two tokens are needed")
    return merge[:at], merge[at + 1 :]


def _sentence_piece(vocabulary: _Vocabulary, templates: ChatTemplates) -> GgufTokenizer:
    metadata = vocabulary.metadata
    user_defined = vocabulary.ids(USER_DEFINED)
    spaces = [index for index in user_defined if not vocabulary.tokens[index].strip(" ")]
    pieces = list(vocabulary.tokens)
    for index in spaces:  # stored as the text they stand for, unlike all other pieces
        pieces[index] = _SPACE * len(pieces[index])
    ids = {piece: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise CheckpointError(f"{metadata.where}: tokenizer.ggml.tokens has a run of spaces twice")
    unknown = vocabulary.id("unknown_token_id", _SENTENCE_PIECE_IDS["unknown_token_id"])
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(vocabulary, pieces, spaces),
            unk_token=None if unknown is None else pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(backend, vocabulary, sorted(set(user_defined) - set(spaces)))
    named = {theirs: vocabulary.id(ours, _SENTENCE_PIECE_IDS.get(ours)) for theirs, ours in _NAMED.items()}
    return _finish(backend, vocabulary, templates, named, adds_bos=True)


def _unigram(vocabulary: _Vocabulary, templates: ChatTemplates) -> GgufTokenizer:
    """Pieces with the logarithms of their probabilities; text is rewritten by the file's own table of characters."""
    metadata, tokens = vocabulary.metadata, vocabulary.tokens
    unknown = vocabulary.id("unknown_token_id", _UNIGRAM_IDS["unknown_token_id"])
    backend = tokenizers.Tokenizer(
        models.Unigram(
            vocab=list(zip(tokens, _scores(vocabulary).tolist(), strict=True)),
            unk_id=unknown,
            byte_fallback=bool(vocabulary.ids(BYTE)),
        )
    )
    table = metadata.numbers("tokenizer.ggml.precompiled_charsmap")
    if table is not None and table.size:
        backend.normalizer = normalizers.Precompiled(table.astype(np.uint8).tobytes())
    scheme = "always" if metadata.flag("tokenizer.ggml.add_space_prefix", True) else "never"
    alone = metadata.flag("tokenizer.ggml.remove_extra_whitespaces", True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.WhitespaceSplit()] if alone else []),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    named = {theirs: vocabulary.id(ours, _UNIGRAM_IDS.get(ours)) for theirs, ours in _NAMED.items()}
    _add_tokens(backend, vocabulary, vocabulary.ids(USER_DEFINED))
    if unknown is not None:
        backend.add_special_tokens([AddedToken(tokens[unknown], normalized=False, special=True)])
    return _finish(backend, vocabulary, templates, named, adds_bos=False, adds_eos=True)


def _word_piece(vocabulary: _Vocabulary, templates: ChatTemplates) -> GgufTokenizer:
    """Words are stored with a mark in front and their parts without one; here parts have one and words have none."""
    controls = set(vocabulary.ids(CONTROL))

    def piece(index: int, token: str) -> str:
        if token.startswith(_SPACE):
            return token.removeprefix(_SPACE)
        bracketed = token.startswith("[") and token.endswith("]")
        return token if index in controls or bracketed else f"##{token}"

    pieces = [piece(index, token) for index, token in enumerate(vocabulary.tokens)]
    ids = {token: index for index, token in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise CheckpointError(f"{vocabulary.metadata.where}: tokenizer.ggml.tokens has a word or a part of one twice")
    named = {theirs: vocabulary.id(ours, _WORD_PIECE_IDS.get(ours)) for theirs, ours in _NAMED.items()}
    first = vocabulary.id("cls_token_id", named["bos_token"])
    last, unknown = named["sep_token"], named["unk_token"]
    if first is None or last is None or unknown is None:
        raise CheckpointError(
            f"{vocabulary.metadata.where}: tokenizer.ggml names no token for the beginning, the end or what is unknown"
        )
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=ids, unk_token=pieces[unknown]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    others = (index for index in (named["pad_token"], named["mask_token"]) if index is not None)
    special = {*controls, first, last, unknown, *others}
    backend.add_special_tokens([AddedToken(pieces[index], normalized=False, special=True) for index in sorted(special)])
    backend.post_processor = processors.TemplateProcessing(
        single=[pieces[first], "$A", pieces[last]],
        pair=[pieces[first], "$A", pieces[last], "$B:1", f"{pieces[last]}:1"],
        special_tokens=[(pieces[first], first), (pieces[last], last)],
    )
    config = {name: pieces[index] for name, index in named.items() if index is not None} | {"cls_token": pieces[first]}
    return GgufTokenizer(backend, config, frozenset(), templates)


def _merges(vocabulary: _Vocabulary, pieces: list[str], spaces: list[int]) -> list[tuple[str, str]]:
    """Best piece first: the runs of spaces, which SentencePiece cuts out before it joins anything, then by score."""
    listed = vocabulary.metadata.texts("tokenizer.ggml.merges")
    if listed is not None:
        return [_pair(merge, vocabulary.metadata.where) for merge in listed]
    scores = _scores(vocabulary)
    rank = np.full(len(pieces), -1, np.int64)
    normal = np.asarray(vocabulary.ids(NORMAL), np.int64)
    _, place = np.unique(-scores[normal].astype(np.float64), return_inverse=True)
    rank[normal] = place + len(spaces)
    rank[spaces] = np.arange(len(spaces))
    return sentence_piece_merges(pieces, rank)


def _scores(vocabulary: _Vocabulary) -> npt.NDArray[Any]:
    """One for every token."""
    scores, count = vocabulary.metadata.numbers("tokenizer.ggml.scores"), len(vocabulary.tokens)
    if scores is None or scores.shape != (count,) or not np.isfinite(scores).all():
        raise CheckpointError(
            f"{vocabulary.metadata.where}: tokenizer.ggml.scores must be a list of {count} finite numbers"
        )
    return scores


def _add_tokens(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary, user_defined: Iterable[int]) -> None:
    """Control tokens are special; both kinds are found in text as they stand, before anything else is done to it."""
    tokens = vocabulary.tokens
    special = [AddedToken(tokens[index], normalized=False, special=True) for index in vocabulary.ids(CONTROL)]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(tokens[index], normalized=False, special=False) for index in user_defined])


def _finish(
    backend: tokenizers.Tokenizer,
    vocabulary: _Vocabulary,
    templates: ChatTemplates,
    named: dict[str, int | None],
    adds_bos: bool,
    adds_eos: bool = False,
) -> GgufTokenizer:
    metadata, tokens = vocabulary.metadata, vocabulary.tokens
    begins = named["bos_token"] if metadata.flag("tokenizer.ggml.add_bos_token", adds_bos) else None
    ends = named["eos_token"] if metadata.flag("tokenizer.ggml.add_eos_token", adds_eos) else None
    around = [*([] if begins is None else [tokens[begins]]), "$A", *([] if ends is None else [tokens[ends]])]
    backend.post_processor = processors.TemplateProcessing(
        single=around,
        pair=[*around, *(f"{part}:1" if part != "$A" else "$B:1" for part in around)],
        special_tokens=[(tokens[index], index) for index in {begins, ends} - {None} if index is not None],
    )
    eos = {index for index in vocabulary.ids(CONTROL, USER_DEFINED) if tokens[index] in ENDS_OF_GENERATION}
    eos |= {index for key in _ENDS if (index := vocabulary.id(key)) is not None}
    eos |= {index for index in (named["eos_token"],) if index is not None}
    config = {name: tokens[index] for name, index in named.items() if index is not None}
    return GgufTokenizer(backend, config, frozenset(eos), templates)


def _templates(metadata: Metadata) -> dict[str, str]:
    """``tokenizer.chat_template`` is the usual one; named ones are listed in ``tokenizer.chat_templates``."""
    names = metadata.texts("tokenizer.chat_templates") or []
    found = {name: metadata.text(f"tokenizer.chat_template.{name}") for name in names}
    found["default"] = metadata.text("tokenizer.chat_template")
    return {name: source for name, source in found.items() if source is not None}
