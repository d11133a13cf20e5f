# SPDX-License-Identifier: Apache-2.0
"""The memory of the tier behind the prefix cache: slots for blocks, in memory or in a file that is mapped.

A file is reserved in whole when it is opened, so that a full disk is a sentence at the start and no fault later. It has
no name, so nothing is left of it however the process ends; or it is kept under a name, with what its slots hold, for a
later process that runs the same model in the same way. Then it begins with a header (HEADER bytes: JSON in ASCII and
spaces), an index of its blocks follows, and the slots begin at a whole page. The index has a digest of each block's
bytes: what does not have them any more, for whatever reason, is not there. So nothing waits for the disk.
"""

import contextlib
import errno
import fcntl
import json
import logging
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import CapacityError, ConfigError

logger = logging.getLogger(__name__)

KEPT_NAME = "linnet-kv-blocks"
HEADER = 4096
DIGEST_BYTES = 32
CONTENT_BYTES = 16
_ENTRY = np.dtype([("slot", "<u8"), ("digest", f"V{DIGEST_BYTES}"), ("content", f"V{CONTENT_BYTES}")])
_MAGIC = "linnet block store 2"

Index = Sequence[tuple[bytes, int]]
"""Digests and the slots of their blocks, what is to be given up first at the front."""


@dataclass(frozen=True)
class StorePlace:
    """Where a store lies.

    directory: a file of this directory; None: in memory.
    identity:  what its contents depend on (the weights, the numerics, the KV cache's type), if the file is to be kept;
               None: it has no name and goes with the process. What a file of another identity holds is forgotten.
    group:     the cache group whose blocks it has; each has a file of its own.
    """

    directory: Path | None = None
    identity: str | None = None
    group: int = 0

    @property
    def kept(self) -> bool:
        """Whether another process is to find what this one leaves."""
        return self.directory is not None and self.identity is not None

    @property
    def name(self) -> str:
        """Of the file, if it is kept."""
        return f"{KEPT_NAME}.{self.group}" if self.group else KEPT_NAME


class BlockStore:
    """`slots` blocks of `block_bytes` each: `memory` is uint8 [slots, block_bytes]. Used by one thread at a time.

    index: what a kept file was left with; empty for a new one, for one of something else, and for one whose last user
    did not `save`.
    """

    def __init__(self, place: StorePlace, slots: int, block_bytes: int) -> None:
        """Raises ConfigError for a place that cannot be, CapacityError where there is not enough room."""
        self.index: Index = ()
        self.kept = place.kept
        self._facts = {"magic": _MAGIC, "identity": place.identity, "slots": slots, "block_bytes": block_bytes}
        self._descriptor: int | None = None
        head = HEADER + -(-slots * _ENTRY.itemsize // HEADER) * HEADER if place.kept else 0
        size = head + slots * block_bytes
        known = 0
        if place.directory is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            self._mapping = mmap.mmap(-1, size, flags=flags)
            with contextlib.suppress(OSError):  # as for the KV cache itself: large pages are slow to touch
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
        else:
            self._descriptor = _opened(place.directory, place.name if place.kept else None)
            try:
                if place.kept:
                    known = _left_blocks(self._descriptor, place.directory / place.name, self._facts, size)
                _reserve(self._descriptor, size, place.directory)
                self._mapping = mmap.mmap(self._descriptor, size)
            except BaseException:
                os.close(self._descriptor)
                raise
        self.memory = np.frombuffer(self._mapping, np.uint8, slots * block_bytes, head).reshape(slots, block_bytes)
        if place.kept:
            self.index = self._read_index(known)
            if len(self.index) < known:
                lost, path = known - len(self.index), f"{place.directory}/{place.name}"
                logger.warning("%s: %d of %d blocks are damaged and will be computed again", path, lost, known)
            self._write_header(blocks=None)

    def save(self, index: Index) -> None:
        """Leave a kept file with what its slots hold; nothing may be stored afterwards."""
        entries = np.array([(slot, digest, self._content(digest, slot)) for digest, slot in index], _ENTRY)
        self._mapping[HEADER : HEADER + entries.nbytes] = entries.tobytes()
        self._write_header(blocks=len(index))

    def close(self) -> None:
        """Let go of the memory or the file. Idempotent."""
        self.memory = np.zeros((0, 0), np.uint8)
        with contextlib.suppress(BufferError):  # a view of it still lives: it is unmapped with the last one
            self._mapping.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write_header(self, blocks: int | None) -> None:
        """``blocks``: entries of the index; None while the slots are in use."""
        text = json.dumps({**self._facts, "blocks": blocks}).encode("ascii").ljust(HEADER)
        assert len(text) == HEADER, "an identity is short"
        self._mapping[:HEADER] = text

    def _read_index(self, blocks: int) -> Index:
        """The entries whose blocks are as they were left."""
        found: dict[bytes, int] = {}
        used: set[int] = set()
        for slot, digest, content in np.frombuffer(self._mapping, _ENTRY, blocks, HEADER).tolist():
            whole = slot < len(self.memory) and content == self._content(digest, slot)
            if whole and digest not in found and slot not in used:
                found[digest] = slot
                used.add(slot)
        return tuple(found.items())

    def _content(self, digest: bytes, slot: int) -> bytes:
        """A digest of a block's bytes, and of its name and place."""
        seen = blake2b(digest + slot.to_bytes(8, "little"), digest_size=CONTENT_BYTES)
        seen.update(self.memory[slot])
        return seen.digest()


def _opened(directory: Path, name: str | None) -> int:
    """A descriptor of a regular file that nobody else uses as a store. Raises ConfigError."""
    try:
        if name is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(directory / name, flags, 0o600)
        else:
            descriptor = _without_name(directory)
    except OSError as error:
        raise ConfigError(
            f"kv_swap_dir is {directory}, where no file can be written: {error.strerror}", settings=["kv_swap_dir"]
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{directory / (name or '')} is no regular file", settings=["kv_swap_dir"])
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{directory / (name or '')} is in use by another process; accepted is a folder for each",
            settings=["kv_swap_dir"],
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _without_name(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = directory / f".linnet-{os.getpid()}-{os.urandom(8).hex()}"  # a file system that has no such files
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return descriptor


def _left_blocks(descriptor: int, path: Path, facts: dict[str, Any], size: int) -> int:
    """How many blocks a kept file says it was left with. A file of something else is emptied, and the log says so."""
    if os.fstat(descriptor).st_size == 0:
        return 0
    try:
        found = json.loads(os.pread(descriptor, HEADER, 0))
        blocks = found.pop("blocks")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found, blocks = None, 0
    if found == facts and os.fstat(descriptor).st_size == size:
        if blocks is None:
            logger.warning("%s was not left in order; its blocks will be computed again", path)
            return 0
        if isinstance(blocks, int) and 0 <= blocks <= facts["slots"]:
            return blocks
    named = isinstance(found, dict) and found.get("magic") == _MAGIC
    other = named and found.get("identity") != facts["identity"]
    what = "of another model, KV type or build" if other else "of another size" if named else "that cannot be read"
    logger.warning("%s holds blocks %s; they are forgotten and will be computed again", path, what)
    os.ftruncate(descriptor, 0)
    return 0


def _reserve(descriptor: int, size: int, directory: Path) -> None:
    """Have the file's bytes on the disk before any is written. Raises CapacityError.

    What is more than is free is not even tried: it would fill the disk for a moment.
    """
    disk, missing = os.fstatvfs(descriptor), size - os.fstat(descriptor).st_blocks * 512
    free = disk.f_bavail * disk.f_frsize
    try:
        if missing > free:
            raise OSError(errno.ENOSPC, "")
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ConfigError(
                f"kv_swap_dir is {directory}, whose file system cannot reserve a file: {error.strerror}",
                settings=["kv_swap_dir"],
            ) from None
        raise CapacityError(
            f"kv_swap_dir is {directory}, where a file of {size / 2**20:,.0f} MiB is asked for and "
            f"{free / 2**20:,.0f} MiB are free; ask for less with kv_swap_bytes",
            settings=["kv_swap_bytes", "kv_swap_dir"],
        ) from None
