# SPDX-License-Identifier: Apache-2.0
"""Files of tiles as files: the page that says what one is, who is using it, and which ones nobody will use again.

Whoever maps a file holds a shared lock on it for as long as the mapping lives, and sets its time of modification, which
so says when it was last used. What is deleted must not be locked.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import CheckpointError
from linnet.formats.durable import DirectoryLock

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
SUFFIX, PARTIAL_SUFFIX = ".tiles", ".partial"


@dataclass(frozen=True)
class TileFile:
    """One file of a cache. ``checkpoint``: the directory it was made from; None if the file does not say."""

    path: Path
    nbytes: int
    used_s: float
    checkpoint: Path | None
    isa: str

    @property
    def orphaned(self) -> bool:
        """Whether its checkpoint is gone."""
        return self.checkpoint is not None and not self.checkpoint.exists()

    def remove(self) -> bool:
        """Delete the file unless somebody has it mapped; whether it is gone."""
        try:
            with open(self.path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):  # else it was replaced just now
                    self.path.unlink()
            return True
        except FileNotFoundError:
            return True
        except OSError:
            return False


def tile_files(directory: Path) -> list[TileFile]:
    """All files of tiles in a cache, the one used last first; what cannot be read is left out."""
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            facts = _facts(file.read(HEADER_BYTES))
            checkpoint = facts.get("checkpoint")
            found.append(
                TileFile(
                    path,
                    status.st_size,
                    status.st_mtime,
                    Path(checkpoint) if isinstance(checkpoint, str) else None,
                    str(facts.get("isa", "unknown")),
                )
            )
    return sorted(found, key=lambda file: -file.used_s)


def prune(directory: Path) -> None:
    """Delete the tiles of checkpoints that are gone, and what writers that were killed have left."""
    for file in tile_files(directory):
        if file.orphaned and file.remove():
            logger.info("deleted %s: its checkpoint %s is gone", file.path, file.checkpoint)
    for folder in directory.glob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(CheckpointError):  # somebody is writing it
            DirectoryLock(folder, folder).release(remove=True)


def page(header: Mapping[str, Any], weights: object) -> bytes:
    """The first page of a file: what it is for people, and a hash of that and of everything else it depends on."""
    text = json.dumps([header, weights], sort_keys=True)
    shown = {**header, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    found = json.dumps(shown, sort_keys=True).encode()
    if len(found) > HEADER_BYTES:  # a path of thousands of characters
        found = json.dumps({**shown, "checkpoint": None}, sort_keys=True).encode()
    assert len(found) <= HEADER_BYTES
    return found.ljust(HEADER_BYTES, b"\n")


def _facts(first: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        facts = json.loads(first)
        if isinstance(facts, dict):
            return facts
    return {}


def map_tiles(path: Path, content: bytes, total: int) -> np.ndarray | None:
    """The tiles of a file whose first page and size are as expected, locked against deletion while they live."""
    try:
        with open(path, "rb") as file:
            if file.read(HEADER_BYTES) != content or os.fstat(file.fileno()).st_size != HEADER_BYTES + total:
                return None
            with contextlib.suppress(OSError):  # a file system without locks; a file of somebody else
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the mapping keeps a copy of the descriptor
                os.utime(file.fileno())
            mapping = mmap.mmap(file.fileno(), HEADER_BYTES + total, access=mmap.ACCESS_READ)
            with contextlib.suppress(OSError):  # where the kernel has no large pages
                mapping.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(mapping, np.uint8)[HEADER_BYTES:]
    except FileNotFoundError:
        return None
