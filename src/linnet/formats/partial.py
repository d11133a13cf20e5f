# SPDX-License-Identifier: Apache-2.0
"""An output in the making: a directory ``.NAME.linnet-partial`` beside the target, under a lock, with a spool in it.

Shared by whatever writes a model: a directory (writer.py) or one file (gguf/output.py). The target is not touched here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from linnet.formats.durable import REPLACED, DirectoryLock, os_errors, restore_replaced, sync_directory
from linnet.formats.spool import PIECES, Spool
from linnet.formats.target import check_partial

PARTIAL_SUFFIX = ".linnet-partial"
STAGED = "publish"
PARTIAL_NAMES = ("lock", "journal.jsonl", PIECES, "scratch", STAGED, REPLACED)
"""What lies in a partial directory."""


def partial_of(target: Path) -> Path:
    """The directory in which ``target`` (as ``real_target`` gives it) is made."""
    return target.with_name(f".{target.name}{PARTIAL_SUFFIX}")


class PartialOutput:
    """``spool`` in ``directory``, locked until ``release``.

    ``check`` is called again once the lock is held: whether the target may still be written. ``resume`` keeps what an
    interrupted writer with the same ``identity`` committed. CheckpointError: another writer, disk full, no permission,
    strange files in the way. ConfigError: identity differs.
    """

    def __init__(self, target: Path, check: Callable[[], object], resume: bool, identity: str) -> None:
        self.directory = partial_of(target)
        with os_errors(self.directory):
            check_partial(self.directory, PARTIAL_NAMES)
            target.parent.mkdir(parents=True, exist_ok=True)
        self._lock: DirectoryLock | None = DirectoryLock(self.directory, target)
        self._spool: Spool | None = None
        try:
            with os_errors(self.directory):
                restore_replaced(self.directory, target)
                check()
                if not resume:
                    self._clear()
                self._spool = Spool(self.directory, identity, resume)
                self.scratch.mkdir(exist_ok=True)
        except BaseException:
            self.release(remove=False)
            raise

    @property
    def spool(self) -> Spool:
        """Finished and pending tensors."""
        assert self._spool is not None
        return self._spool

    @property
    def scratch(self) -> Path:
        """A directory for the caller's own resume files; it lives and dies with the partial directory."""
        return self.directory / "scratch"

    def staged(self) -> Path:
        """The directory to assemble in, renamed to the target (or a file of it) in the end.

        Fresh, unless an earlier attempt has already given up pieces for what lies there. Its name is durable: pieces
        are given up for files in it, which are of no use in a directory that a crash takes away.
        """
        staged = self.directory / STAGED
        if not self.spool.assembled:
            shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(exist_ok=True)
        sync_directory(self.directory)
        return staged

    def release(self, remove: bool) -> None:
        """Give the lock back, once; ``remove`` deletes everything written so far."""
        if self._lock is None:
            return
        if self._spool is not None:
            self._spool.close()
        self._lock.release(remove)
        self._lock = None

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            if path.name == "lock":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
