# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens for calibration and evaluation: seeded, hashed, independent of the machine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.text.tokenizer import Tokenizer

_CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class CalibrationRows:
    """``token_ids`` int32 [rows, length]; ``digest``: see rows_digest.

    ``name``: which text they are of, for records and people. ``lengths``: tokens of the documents that each row holds,
    none of which sees another; None: every row is one sequence.
    """

    token_ids: np.ndarray
    digest: str
    name: str
    lengths: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, places: Sequence[int]) -> "CalibrationRows":
        """These rows alone."""
        ids = self.token_ids[list(places)]
        lengths = None if self.lengths is None else tuple(self.lengths[place] for place in places)
        return CalibrationRows(ids, rows_digest(ids, lengths), self.name, lengths)

    def sequences(self, places: Sequence[int]) -> list[int]:
        """How many tokens each sequence has that these rows hold, in order."""
        if self.lengths is None:
            return [self.token_ids.shape[1]] * len(places)
        return [tokens for place in places for tokens in self.lengths[place]]


def rows_digest(token_ids: np.ndarray, lengths: Sequence[Sequence[int]] | None = None) -> str:
    """SHA-256 over the shape, the ids as little-endian int32 and, if there are some, the documents' lengths."""
    ids = np.ascontiguousarray(token_ids, dtype="<i4")
    found = hashlib.sha256(f"linnet-rows-1 {ids.shape}".encode() + ids.tobytes())
    if lengths is not None:
        found.update(str([list(row) for row in lengths]).encode())
    return found.hexdigest()


def encode_document(tokenizer: "Tokenizer", text: str) -> np.ndarray:
    """Ids int32 of a long text without special tokens. Cut at line ends into pieces, so that memory stays bounded.

    The pieces depend on the text alone, so the ids do too.
    """
    parts: list[list[int]] = []
    start = 0
    while start < len(text):
        stop = min(start + _CHUNK_CHARACTERS, len(text))
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        parts.append(tokenizer.encode(text[start:stop], add_special_tokens=False))
        start = stop
    return np.concatenate([np.asarray(part, np.int32) for part in parts]) if parts else np.zeros(0, np.int32)


def calibration_rows(
    tokenizer: "Tokenizer", text: str, rows: int, length: int, seed: int, name: str = "the calibration text"
) -> CalibrationRows:
    """``rows`` windows of ``length`` consecutive tokens of ``text``, at places drawn by ``seed``.

    Windows do not overlap: the text is cut into windows, as many as it holds, and ``rows`` of them are drawn without
    replacement (Philox, so the draw is the same on every machine). A tokenizer that adds BOS starts each row with it.
    Raises ConfigError when the text, which it calls ``name``, is too short, saying how many tokens it has.
    """
    _check(rows, length, seed)
    ids = encode_document(tokenizer, text)
    body = length - 1 if tokenizer.adds_bos else length
    windows = len(ids) // body
    _check_enough(name, len(ids), rows, length, body)
    draw = np.random.Generator(np.random.Philox(key=seed))
    chosen = draw.permutation(windows)[:rows]
    token_ids = np.empty((rows, length), np.int32)
    if tokenizer.adds_bos and tokenizer.bos_token_id is not None:
        token_ids[:, 0] = tokenizer.bos_token_id
    for row, window in enumerate(chosen):
        token_ids[row, length - body :] = ids[window * body : (window + 1) * body]
    return CalibrationRows(token_ids, rows_digest(token_ids), name)


def document_rows(
    tokenizer: "Tokenizer", documents: Sequence[str], rows: int, length: int, seed: int, name: str
) -> CalibrationRows:
    """``rows`` rows of ``length`` tokens full of documents, in an order drawn by ``seed``, each as the model reads it
    alone; what of one has no room in its row begins the next.

    For texts of many short documents: a window over several would show the model what it never reads. Raises
    ConfigError as ``calibration_rows`` does.
    """
    _check(rows, length, seed)
    draw = np.random.Generator(np.random.Philox(key=seed)).permutation(len(documents))
    encoded = [tokenizer.encode(documents[place]) for place in draw]
    _check_enough(name, sum(map(len, encoded)), rows, length, length)
    return packed_rows(encoded, rows, length, name)


def packed_rows(documents: Sequence[Sequence[int]], rows: int, length: int, name: str) -> CalibrationRows:
    """The first ``rows`` rows of ``length`` tokens of these documents one after the other, none of which sees another.

    What of a document has no room in its row begins the next; together they have at least so many tokens.
    """
    ids = np.concatenate([np.asarray(document, np.int32) for document in documents])[: rows * length]
    ends = np.cumsum([len(document) for document in documents])
    lengths = []
    for start in range(0, rows * length, length):
        inside = ends[(ends > start) & (ends < start + length)]
        lengths.append(tuple(np.diff([start, *inside.tolist(), start + length]).tolist()))
    token_ids = ids.reshape(rows, length)
    return CalibrationRows(token_ids, rows_digest(token_ids, lengths), name, tuple(lengths))


def _check(rows: int, length: int, seed: int) -> None:
    for setting, value, least in (("calibration_rows", rows, 1), ("calibration_length", length, 2), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{setting} is {value}; accepted is {least} or more", settings=[setting])
    if seed >= 1 << 64:
        raise ConfigError(f"seed is {seed}; accepted is 0 to 2**64 - 1", settings=["seed"])


def _check_enough(name: str, tokens: int, rows: int, length: int, body: int) -> None:
    """``body``: what each row takes of the text."""
    most = tokens // body
    if most < rows:
        fits = f"calibration_rows of at most {most} fits, or shorter rows" if most else "shorter rows"
        raise ConfigError(
            f"{name} has {tokens} tokens; {rows} rows of {length} tokens need {rows * body}: {fits} "
            "(calibration_length), or more text",
            settings=["calibration_rows", "calibration_length"],
        )
