# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of tensors and files, several at a time (hashlib releases the GIL)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

_PIECE_BYTES = 8 << 20


class Described(Protocol):
    """What a tensor's identity consists of besides its bytes."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def sha256(data: memoryview | bytes) -> str:
    """Hex digest, taken in pieces so that a mapped tensor needs no memory of its own."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    digest = hashlib.sha256()
    for start in range(0, len(view), _PIECE_BYTES):
        digest.update(view[start : start + _PIECE_BYTES])
    return digest.hexdigest()


def sha256_all(items: Iterable[tuple[str, memoryview]], look: Callable[[str], object] | None = None) -> dict[str, str]:
    """Name -> hex digest for every item, hashed in parallel threads.

    ``look`` is called with each name right after, in the same thread: what has just been read lies in the page cache.
    """

    def hashed(pair: tuple[str, memoryview]) -> str:
        digest = sha256(pair[1])
        if look is not None:
            look(pair[0])
        return digest

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
