# SPDX-License-Identifier: Apache-2.0
"""``tokenizer.json`` -> the tokenizers library's object, by the shorter of two ways to the same result.

The library's own reader keeps several generic copies of the file, and the interpreter lock while it works: for a BPE
vocabulary of 128k pieces 0.3 s and 140 MB, most of what a start costs. Handing it the same vocabulary and merges
already parsed takes two thirds of the time and of the memory. Whatever is not a plain BPE model, and
every damaged file, goes to the library's reader, whose errors are the ones a user sees.

Order of steps: split the file, read the rest with an empty model, put the model in, add tokens in the file's order, as
the library does.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import tokenizers
from tokenizers import models

from linnet.errors import CheckpointError


class _BPE(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The model of a tokenizer.json, if it is BPE. Merges are pairs, in old files one text with a space between."""

    vocab: dict[str, int]
    merges: list[tuple[str, str] | str]
    type: str = ""
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class _AddedToken(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


_EMPTY_MODEL = msgspec.Raw(b'{"type":"BPE","vocab":{},"merges":[]}')


def parse_tokenizer(text: bytes, where: str) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer, and one more than the highest id of its model (added tokens may reach further).

    Raises CheckpointError, naming ``where``, for what the library cannot read.
    """
    with without_collection():
        found = _as_bpe(text) or _as_anything(text, where)
    release_memory()
    return found


def of_library(error: BaseException) -> bool:
    """Errors of the tokenizers library; a Rust panic arrives as a BaseException that no module exports."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _as_bpe(text: bytes) -> tuple[tokenizers.Tokenizer, int] | None:
    """None for what this way does not understand."""
    try:
        parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(parts["model"], type=_BPE)
        added = msgspec.json.decode(parts.get("added_tokens", b"[]"), type=list[_AddedToken])
        if model.type != "BPE":
            return None
        rest = msgspec.json.encode({**parts, "model": _EMPTY_MODEL, "added_tokens": []})
        tokenizer = tokenizers.Tokenizer.from_buffer(rest)
        options = {
            name: value
            for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
            if (value := getattr(model, name)) is not None
        }
        tokenizer.model = models.BPE(
            vocab=model.vocab,
            merges=[pair if isinstance(pair, tuple) else _split(pair) for pair in model.merges],
            fuse_unk=model.fuse_unk,
            byte_fallback=model.byte_fallback,
            ignore_merges=model.ignore_merges,
            **options,
        )
        tokenizer.add_tokens([_library_token(token) for token in added])
    except (KeyError, msgspec.MsgspecError, _NotPlainError):
        return None
    except BaseException as error:
        if not of_library(error):
            raise
        return None
    return tokenizer, 1 + max(model.vocab.values(), default=-1)


def _as_anything(text: bytes, where: str) -> tuple[tokenizers.Tokenizer, int]:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except BaseException as error:
        if not of_library(error):
            raise
        raise CheckpointError(f"{where}: not a tokenizer this version can read ({error})") from None
    return tokenizer, 1 + max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)


def _library_token(token: _AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


class _NotPlainError(Exception):
    pass


def _split(merge: str) -> tuple[str, str]:
    first, space, second = merge.partition(" ")
    if not space or " " in second or merge.startswith("#version"):
        raise _NotPlainError
    return first, second


@contextmanager
def without_collection() -> Iterator[None]:
    """Half a million objects come and go, none of them in a cycle: looking for cycles is a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def release_memory() -> None:
    """Give what reading took back to the system, where the C library can: it would count as ours for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
