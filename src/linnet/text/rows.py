# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens for calibration and evaluation: seeded, hashed, independent of the machine."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.text.tokenizer import Tokenizer

_CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class CalibrationRows:
    """``token_ids`` int32 [rows, length]; ``digest`` is the SHA-256 of shape and ids (little-endian).

    ``name``: which text they are of, for records and people.
    """

    token_ids: np.ndarray
    digest: str
    name: str


def rows_digest(token_ids: np.ndarray) -> str:
    """SHA-256 over the shape and the ids as little-endian int32."""
    ids = np.ascontiguousarray(token_ids, dtype="<i4")
    return hashlib.sha256(f"linnet-rows-1 {ids.shape}".encode() + ids.tobytes()).hexdigest()


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
    for setting, value, least in (("calibration_rows", rows, 1), ("calibration_length", length, 2), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{setting} is {value}; accepted is {least} or more", settings=[setting])
    if seed >= 1 << 64:
        raise ConfigError(f"seed is {seed}; accepted is 0 to 2**64 - 1", settings=["seed"])
    ids = encode_document(tokenizer, text)
    body = length - 1 if tokenizer.adds_bos else length
    windows = len(ids) // body
    if windows < rows:
        most = f"calibration_rows of at most {windows} fits, or shorter rows" if windows else "shorter rows"
        raise ConfigError(
            f"{name} has {len(ids)} tokens; {rows} rows of {length} tokens need {rows * body}: {most} "
            "(calibration_length), or more text",
            settings=["calibration_rows", "calibration_length"],
        )
    draw = np.random.Generator(np.random.Philox(key=seed))
    chosen = draw.permutation(windows)[:rows]
    token_ids = np.empty((rows, length), np.int32)
    if tokenizer.adds_bos and tokenizer.bos_token_id is not None:
        token_ids[:, 0] = tokenizer.bos_token_id
    for row, window in enumerate(chosen):
        token_ids[row, length - body :] = ids[window * body : (window + 1) * body]
    return CalibrationRows(token_ids, rows_digest(token_ids), name)
