# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash: fsync of data and names, one rename to publish, one writer per target."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from linnet.errors import CheckpointError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_COPY_BYTES = 8 << 20
REPLACED = "replaced"
"""Where an old result lies for the moment between two renames, on file systems that cannot exchange two names."""

START_AFRESH = "start afresh with --restart (restart=True)"
"""What to do when the files of an interrupted run cannot be trusted."""


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """OSError (disk full, permission, I/O) -> CheckpointError in one sentence naming the path."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise CheckpointError(f"{where}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def read_errors(path: Path, remedy: str) -> Iterator[None]:
    """OSError while reading (missing, permission, I/O) -> CheckpointError in one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise CheckpointError(f"{where}: cannot be read: {error.strerror or error}; {remedy}") from None


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, data: bytes) -> None:
    """Create or replace a file and flush it to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_range(source: int, target: int, offset: int, count: int, place: int) -> None:
    """``count`` bytes of ``source`` from ``offset`` to ``target`` at ``place``; in the kernel (shared extents) if it
    can."""
    while count:
        try:
            done = os.copy_file_range(source, target, count, offset, place)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                raise
            done = 0
        if done == 0:  # not supported here, or the end of a truncated file
            piece = os.pread(source, min(count, _COPY_BYTES), offset)
            if not piece:
                raise OSError(errno.EIO, "the spooled data ends too early")
            done = os.pwrite(target, piece, place)
        offset += done
        place += done
        count -= done


def publish_directory(source: Path, target: Path, replace: bool) -> None:
    """Rename ``source`` to ``target`` and make it durable; with ``replace`` an existing target is swapped out.

    After a swap the old directory lies at ``source``. At no moment is the target missing or incomplete, except on
    file systems without an atomic exchange, where it is missing between two renames: ``restore_replaced`` undoes the
    first if the second never came.
    """
    if replace and target.exists():
        if not _exchange(source, target):
            aside = source.with_name(REPLACED)
            os.rename(target, aside)
            try:
                os.rename(source, target)
            except BaseException:
                os.rename(aside, target)
                raise
            os.rename(aside, source)
    else:
        os.rename(source, target)  # onto nothing or an empty directory
    sync_directory(target.parent)
    sync_directory(source.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system or the file system cannot. OSError if the disk says no."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def restore_replaced(directory: Path, target: Path) -> None:
    """Put back what ``publish_directory`` had moved aside in ``directory`` when it was killed between its renames."""
    aside = directory / REPLACED
    if aside.is_dir() and not target.exists():
        os.rename(aside, target)
        sync_directory(target.parent)


class DirectoryLock:
    """An exclusive lock on a directory, held by an open file in it; gone with the process, however it ends."""

    def __init__(self, directory: Path, target: Path) -> None:
        self._directory = directory
        while True:
            with os_errors(directory):
                directory.mkdir(exist_ok=True)
                self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._descriptor)
                raise CheckpointError(f"{target}: another process is writing it (lock {directory / 'lock'})") from None
            try:
                if os.path.samestat(os.fstat(self._descriptor), os.stat(directory / "lock")):
                    return
            except OSError:
                pass
            os.close(self._descriptor)  # the previous holder removed the directory meanwhile: try again

    def release(self, remove: bool) -> None:
        """Give the lock back; ``remove`` deletes the directory first, so that nobody locks a ghost."""
        if remove:
            shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._descriptor)
