# SPDX-License-Identifier: Apache-2.0
"""Asks the system for a model's files before anything has been looked at: disks work while Python gets ready."""

import contextlib
import os
from pathlib import Path


def file_bytes(directory: Path) -> int:
    """Bytes of all safetensors files that lie in ``directory``; 0 if it cannot be looked at. Raises nothing."""
    return sum(size for _, size in _files(directory))


def read_ahead(directory: Path) -> None:
    """Start reading all safetensors files into the page cache, which costs this process no memory.

    Returns when the reads are under way, which on a slow disk takes as long as most of them; the interpreter lock is
    free meanwhile. Opening says what is wrong with a file; here nothing is.
    """
    for path, size in _files(directory):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def _files(directory: Path) -> list[tuple[str, int]]:
    try:
        with os.scandir(directory) as entries:
            files = [entry for entry in entries if entry.name.endswith(".safetensors") and entry.is_file()]
            return sorted((entry.path, entry.stat().st_size) for entry in files)
    except OSError:
        return []
