# SPDX-License-Identifier: Apache-2.0
"""A regular file's bytes, mapped read-only: the one way in which weights come into memory.

(An adapter's come in by copying, while others are served: see formats/copied_file.py.)
"""

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from linnet.errors import CheckpointError


@contextlib.contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[int, int]]:
    """A regular file's descriptor and bytes. ``kind`` names the format in the errors.

    Raises CheckpointError: no such file, not a regular one (devices and pipes are not waited for), empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: 0 bytes are too short for a {kind} file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def map_read_only(path: Path, kind: str) -> mmap.mmap:
    """Open, stat, map, close the descriptor; no page is touched. Raises as ``opened`` does."""
    try:
        with opened(path, kind) as (descriptor, size):
            mapping = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be mapped: {error.strerror}") from None
    with contextlib.suppress(OSError):  # what is not in the page cache yet then comes in large pages, if it can
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping
