# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of tensors and files, several at a time (hashlib releases the GIL)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

_PIECE_BYTES = 8 << 20


class Described(Protocol):
    """What a tensor's identity consists of besides its bytes."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


Seen = Callable[[int, memoryview], object]
"""Called with where a piece of some bytes begins, and the piece, after it has been hashed."""


def pieces(data: memoryview | bytes) -> Iterator[tuple[int, memoryview]]:
    """(where it begins, bytes) of one part after another: a multiple of every element's size, but for the last."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    for start in range(0, len(view), _PIECE_BYTES):
        yield start, view[start : start + _PIECE_BYTES]


def sha256(data: memoryview | bytes, seen: Seen | None = None) -> str:
    """Hex digest, taken in pieces so that a mapped tensor needs no memory of its own."""
    digest = hashlib.sha256()
    for start, piece in pieces(data):
        digest.update(piece)
        if seen is not None:
            seen(start, piece)
    return digest.hexdigest()


def sha256_all(items: Iterable[tuple[str, memoryview]], seen: Callable[[str], Seen] | None = None) -> dict[str, str]:
    """Name -> hex digest for every item, hashed in parallel threads; ``seen``: what looks at an item's pieces."""

    def hashed(pair: tuple[str, memoryview]) -> str:
        return sha256(pair[1], None if seen is None else seen(pair[0]))

    pairs = list(items)
    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
        return dict(zip((name for name, _ in pairs), pool.map(hashed, pairs), strict=True))


def combined_digest(tensors: Mapping[str, Described], hashes: Mapping[str, str]) -> str:
    """One digest of a whole checkpoint: SHA-256 over ``name dtype shape hash`` lines sorted by name.

    It does not depend on files, shards or the order of tensors.
    """
    digest = hashlib.sha256()
    for name in sorted(hashes):
        info = tensors[name]
        shape = ",".join(map(str, info.shape))
        digest.update(f"{name}\0{info.dtype}\0{shape}\0{hashes[name]}\n".encode())
    return digest.hexdigest()
