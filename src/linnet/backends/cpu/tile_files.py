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

FORMAT_VERSION = 2
HEADER_BYTES = 4096
SUFFIX, PARTIAL_SUFFIX = ".tiles", ".partial"


@dataclass(frozen=True)
class TileFile:
    """One file of a cache. ``checkpoint``: the directory it was made from; None if the file does not say.

    ``outdated``: an older Linnet wrote it, in a form that this one does not read.
    """

    path: Path
    nbytes: int
    used_s: float
    checkpoint: Path | None
    isa: str
    outdated: bool

    @property
    def checkpoint_gone(self) -> bool:
        """Whether its checkpoint is known to be gone; one that cannot be reached just now is not."""
        if self.checkpoint is None:
            return False
        try:
            os.stat(self.checkpoint)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # no right to look, a server that is away
            return False
        return False

    @property
    def orphaned(self) -> bool:
        """Whether nobody will use it again."""
        return self.outdated or self.checkpoint_gone

    def remove(self) -> bool:
        """Delete the file unless somebody has it mapped; whether it is gone. Raises OSError where that is refused."""
        try:
            with open(self.path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):  # else it was replaced just now
                    self.path.unlink()
            return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False


def tile_files(directory: Path) -> list[TileFile]:
    """All files of tiles in a cache, the one used last first; what cannot be read is left out."""
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            facts = _facts(file.read(HEADER_BYTES))
            checkpoint, version = facts.get("checkpoint"), facts.get("format_version")
            found.append(
                TileFile(
                    path,
                    status.st_size,
                    status.st_mtime,
                    Path(checkpoint) if isinstance(checkpoint, str) else None,
                    str(facts.get("isa", "unknown")),
                    isinstance(version, int) and version < FORMAT_VERSION,
                )
            )
    return sorted(found, key=lambda file: -file.used_s)


def prune(directory: Path) -> None:
    """Delete the tiles that nobody will use again, and what writers that were killed have left."""
    for file in tile_files(directory):
        with contextlib.suppress(OSError):  # a file of somebody else
            if file.orphaned and file.remove():
                reason = "an older Linnet wrote it" if file.outdated else f"its checkpoint {file.checkpoint} is gone"
                logger.info("deleted %s: %s", file.path, reason)
    remove_partial(directory)


def partial_folders(directory: Path) -> list[Path]:
    """Where tiles are being written, or were when their writer was killed."""
    return list(directory.glob(f"*{PARTIAL_SUFFIX}"))


def remove_partial(directory: Path) -> list[str]:
    """Delete what writers that were killed have left; says, in sentences, what was kept and why."""
    kept = []
    for folder in partial_folders(directory):
        try:
            DirectoryLock(folder, folder).release(remove=True)
        except CheckpointError as error:  # somebody is writing it
            kept.append(str(error))
    return kept


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
