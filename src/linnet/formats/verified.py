# SPDX-License-Identifier: Apache-2.0
"""Remembers in the user's cache which files were verified, so that a model is hashed once and not at every start.

An entry holds what the system says of every file: device, inode, size, and the times of the last write and the last
change, the second of which no program can set back. A file changed within the last seconds is not remembered, since the
clock of its file system might not tell the next change from that one. Nothing in the cache is ever required.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from linnet.user_cache import VERIFIED, user_cache_directory

SETTLED_S = 5.0
_VERSION = b"linnet-verified-1"


def file_facts(path: Path, status: os.stat_result) -> bytes:
    """One line that changes when the file is replaced or written."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"{path.name}\0{facts}\n".encode()


def identity(paths: Iterable[Path]) -> str | None:
    """What must not change for a verification to stay true; None while a file is too new to tell, or missing."""
    digest = hashlib.sha256(_VERSION)
    latest_ns = 0
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            return None
        latest_ns = max(latest_ns, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(file_facts(path, status))
    return None if time.time_ns() - latest_ns < SETTLED_S * 1e9 else digest.hexdigest()


def is_remembered(directory: Path, found: str | None) -> bool:
    """Whether ``directory`` was verified while it had this identity."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home
        return found is not None and _entry(directory).read_text(encoding="ascii") == found
    return False


def remember(directory: Path, found: str | None) -> None:
    """Note that ``directory`` was verified; where the cache cannot be written, nothing happens."""
    if found is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        entry = _entry(directory)
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = entry.with_name(f"{entry.name}.{os.getpid()}")
        partial.write_text(found, encoding="ascii")
        partial.replace(entry)


def _entry(directory: Path) -> Path:
    place = hashlib.sha256(str(directory.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return user_cache_directory() / VERIFIED / place
