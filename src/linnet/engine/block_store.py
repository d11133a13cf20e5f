# SPDX-License-Identifier: Apache-2.0
"""The memory of the tier behind the prefix cache: slots for blocks, in memory or in a file that is mapped.

A file is reserved in whole when it is opened, so that a full disk is a sentence at the start and no fault later. It has
no name, so nothing is left of it however the process ends; or it is kept under a name, with what its slots hold, for a
later process that runs the same model in the same way. Then it begins with a header (HEADER bytes: JSON in ASCII and
spaces), the digests of its blocks follow, and the slots begin at a whole page.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnet.errors import CapacityError, ConfigError

HEADER = 4096
DIGEST_BYTES = 32
_ENTRY = np.dtype([("slot", "<u8"), ("digest", f"V{DIGEST_BYTES}")])
_MAGIC = "linnet block store 1"

Index = Sequence[tuple[bytes, int]]
"""Digests and the slots of their blocks, what is to be given up first at the front."""


@dataclass(frozen=True)
class StorePlace:
    """Where a store lies.

    directory: a file of this directory; None: in memory.
    name:      what the file is called, if it is to be kept; None: it has no name and goes with the process.
    identity:  what its contents depend on: the model, its numerics, the KV cache's type. A kept file of another
               identity is refused.
    """

    directory: Path | None = None
    name: str | None = None
    identity: str = ""


class BlockStore:
    """`slots` blocks of `block_bytes` each: `memory` is uint8 [slots, block_bytes]. Used by one thread at a time.

    index: what a kept file was left with; empty for a new one, and for one whose last user did not `save`.
    """

    def __init__(self, place: StorePlace, slots: int, block_bytes: int) -> None:
        """Raises ConfigError for a place that cannot be, CapacityError where there is not enough room."""
        self.index: Index = ()
        self._facts = {"magic": _MAGIC, "identity": place.identity, "slots": slots, "block_bytes": block_bytes}
        self._descriptor: int | None = None
        head = 0 if place.name is None else HEADER + -(-slots * _ENTRY.itemsize // HEADER) * HEADER
        size = head + slots * block_bytes
        if place.directory is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            self._mapping = mmap.mmap(-1, size, flags=flags)
            with contextlib.suppress(OSError):  # as for the KV cache itself: large pages are slow to touch
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
        else:
            self._descriptor = _opened(place.directory, place.name)
            try:
                known = _kept_facts(self._descriptor, place.directory / (place.name or ""), self._facts)
                _reserve(self._descriptor, size, place.directory)
                self._mapping = mmap.mmap(self._descriptor, size)
                if known is not None:
                    self.index = self._read_index(known)
                if head:
                    self._write_header(blocks=None)
            except BaseException:
                os.close(self._descriptor)
                raise
        self.memory = np.frombuffer(self._mapping, np.uint8, slots * block_bytes, head).reshape(slots, block_bytes)

    def save(self, index: Index) -> None:
        """Leave a kept file with what its slots hold; nothing may be stored afterwards."""
        entries = np.array([(slot, digest) for digest, slot in index], _ENTRY)
        self._mapping.flush()
        self._mapping[HEADER : HEADER + entries.nbytes] = entries.tobytes()
        self._mapping.flush()
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
        self._mapping.flush()

    def _read_index(self, blocks: int) -> Index:
        entries = np.frombuffer(self._mapping[HEADER : HEADER + blocks * _ENTRY.itemsize], _ENTRY)
        slots = entries["slot"].tolist()
        found = [(bytes(entry), slot) for entry, slot in zip(entries["digest"].tolist(), slots, strict=True)]
        names, places = {digest for digest, _ in found}, {slot for _, slot in found}
        whole = len(names) == len(places) == blocks and all(slot < self._facts["slots"] for slot in slots)
        return found if whole else ()


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


def _kept_facts(descriptor: int, path: Path, facts: dict[str, object]) -> int | None:
    """How many blocks a kept file was left with; None for a new one or one that was not left in order.

    Raises ConfigError for a file of something else: it is not overwritten.
    """
    if os.fstat(descriptor).st_size == 0:
        return None
    try:
        found = json.loads(os.pread(descriptor, HEADER, 0))
        blocks = found.pop("blocks")
        if found["magic"] != _MAGIC or not (blocks is None or isinstance(blocks, int)):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path} is no store of KV blocks; it is left as it is", settings=["kv_swap_dir"]) from None
    if found != facts:
        kind = "of another model, KV type or build" if found["identity"] != facts["identity"] else "of another size"
        raise ConfigError(f"{path} holds KV blocks {kind}; remove it, or give another folder", settings=["kv_swap_dir"])
    return blocks


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
