# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file calls itself: the ``general.*`` texts at its beginning, read with bounds and nothing else.

Layout (ggml's docs/gguf.md, versions 2 and 3): magic, version, counts of tensors and of key-value pairs; then the
pairs, each a length-prefixed key, a type and a value. Writers put ``general.*`` first, so a small piece is enough.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"GGUF"
_READ_BYTES = 1 << 16
_LONGEST = 512
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each plain type."""


@dataclass
class _Piece:
    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise EOFError
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")


def gguf_names(path: Path) -> dict[str, str]:
    """The texts of the first key-value pairs (``general.architecture``, ``general.name``, …); what is unreadable or
    lies further on is left out. Never raises for a damaged file."""
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            piece = _Piece(file.read(_READ_BYTES))
        if piece.take(4) != MAGIC or piece.number("I") not in (2, 3):
            return found
        piece.take(8)
        for _ in range(min(piece.number("Q"), 1 << 16)):
            key, kind = piece.text(), piece.number("I")
            if kind == _STRING:
                found[key] = _plain(piece.text())
            elif kind == _ARRAY:
                inner, count = piece.number("I"), piece.number("Q")
                if inner == _STRING:
                    for _ in range(min(count, 1 << 16)):
                        piece.text()
                else:
                    piece.take(_SIZES[inner] * count)
            else:
                piece.take(_SIZES[kind])
    except (OSError, EOFError, KeyError):
        pass
    return found


def _plain(text: str) -> str:
    """Printable and short: it comes from a file nobody vouches for and goes to a terminal."""
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST]
