# SPDX-License-Identifier: Apache-2.0
"""Integer weights in the order the kernels read them: one disposable file per checkpoint and ISA tier, mapped.

The checkpoint keeps its canonical layout, which every loader knows and which the kernels can read too, 20 to 40 % more
slowly (docs/LOG.md); what lies in another form they read as tiles only. So the first start writes the weights once
more, as tiles, into the user's cache; later starts map that file. Nothing in it is ever required: no room, no right to
write or a file that does not fit mean that the canonical layout is read, or tiles in memory. Bits are the same either
way.

Side effects, in order: the folder is made, tiles that nobody will use again are deleted, ``NAME.partial/`` is locked, a
file in it is filled, flushed and renamed.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnet.backends.cpu import _native
from linnet.backends.cpu.tile_files import FORMAT_VERSION, HEADER_BYTES, PARTIAL_SUFFIX, SUFFIX, map_tiles, page, prune
from linnet.errors import CheckpointError
from linnet.formats.durable import DirectoryLock

logger = logging.getLogger(__name__)

LEAST_BYTES = 64 << 20
"""A smaller model lives in the caches, where the order hardly matters."""
PIECE_BYTES = 32 << 20
SPARE = 1.1
"""Free space wanted, as a multiple of what is written."""


class TileCache:
    """Tiles in ``directory``. ``least_bytes``: models with fewer bytes of tiles are left alone."""

    def __init__(self, directory: Path, least_bytes: int = LEAST_BYTES) -> None:
        self.directory, self._least_bytes = directory, least_bytes

    def attach(
        self,
        stamp: tuple[str, str],
        isa: str,
        weights: Mapping[str, Sequence[Any]],
        fill: Callable[[Any, np.ndarray], None],
        release: Callable[[], None] = lambda: None,
    ) -> np.ndarray | None:
        """Give every weight its tiles; returns the mapping, which must outlive them, or None where there are none.

        ``stamp``: see StampedSource. ``weights``: native views of one stored weight by what that is, in words; other
        words mean another file. ``fill`` writes the tiles of a view, uint8 [its bytes]. ``release`` is called after
        each weight that was read: its pages are wanted no more.
        """
        place, state = stamp
        sizes = {what: _native.tile_bytes(isa, views[0]) for what, views in weights.items()}
        sizes = {what: size for what, size in sizes.items() if size > 0}
        total = sum(_padded(size) for size in sizes.values())
        if total < max(self._least_bytes, 1):
            return None
        header = {
            "format_version": FORMAT_VERSION,
            "build": _native.build_id,
            "isa": isa,
            "checkpoint": place,
            "state": state,
            "bytes": total,
        }
        name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        path = self.directory / f"{name}-{isa}{SUFFIX}"
        content = page(header, list(sizes.items()))
        try:
            mapped = map_tiles(path, content, total)
            if mapped is None:
                views = [(weights[what][0], size) for what, size in sizes.items()]
                self._write(path, content, total, views, fill, release)
                mapped = map_tiles(path, content, total)
        except OSError as error:
            logger.info("weights are read in their stored order: %s", error)
            return None
        if mapped is None:
            return None
        offset = 0
        for what, size in sizes.items():
            for view in weights[what]:
                view.use_tiles(isa, mapped[offset : offset + size])
            offset += _padded(size)
        return mapped

    def _write(
        self,
        path: Path,
        content: bytes,
        total: int,
        weights: Sequence[tuple[Any, int]],
        fill: Callable[[Any, np.ndarray], None],
        release: Callable[[], None],
    ) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        prune(self.directory)
        started = time.monotonic()
        folder = path.with_suffix(PARTIAL_SUFFIX)
        try:
            lock = DirectoryLock(folder, path)
        except CheckpointError as error:
            logger.info("weights are read in their stored order: %s", error)
            return
        try:
            free = shutil.disk_usage(self.directory).free
            if free < SPARE * total:
                logger.info("weights are read in their stored order: %s has %d bytes free", self.directory, free)
                return
            logger.warning("writing the weights once more in the order they are read, %.2f GB: %s", total / 1e9, path)
            descriptor = os.open(folder / "tiles", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                writer = _Writer(descriptor)
                writer.add(np.zeros(HEADER_BYTES, np.uint8))
                for weight, size in weights:
                    tiles = np.zeros(_padded(size), np.uint8)
                    fill(weight, tiles[:size])
                    writer.add(tiles)
                    release()
                writer.finish()
                os.pwrite(descriptor, content, 0)  # last: a file with a header is whole
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(folder / "tiles", path)
        finally:
            lock.release(remove=True)
        logger.info("wrote %s in %.1f s", path, time.monotonic() - started)


class _Writer:
    """Writes in large pieces at multiples of their size: a file system that can then keeps the file in large pages.

    Those are mapped in no time and read a tenth faster (docs/LOG.md).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._piece, self._filled = descriptor, np.empty(PIECE_BYTES, np.uint8), 0

    def add(self, data: np.ndarray) -> None:
        while data.size:
            part = data[: PIECE_BYTES - self._filled]
            self._piece[self._filled : self._filled + part.size] = part
            self._filled += part.size
            data = data[part.size :]
            if self._filled == PIECE_BYTES:
                self.finish()

    def finish(self) -> None:
        rest = self._piece.data[: self._filled]
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._filled = 0


def _padded(size: int) -> int:
    return -(-size // 4096) * 4096
