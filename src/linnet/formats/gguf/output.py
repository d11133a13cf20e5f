# SPDX-License-Identifier: Apache-2.0
"""A GGUF file being written: spooled tensor by tensor beside the target, then assembled and renamed at once.

An interrupted conversion continues with what was committed. The target is touched once, at the end, and never
replaced.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.durable import os_errors, sync_directory
from linnet.formats.mapped_file import map_bytes
from linnet.formats.partial import PartialOutput
from linnet.gguf import GgufWriter, PlannedTensor, file_bytes

Array = npt.NDArray[Any]


class GgufOutput:
    """Usable as a context manager: leaving it without ``publish`` keeps what was committed for another run.

    ``identity`` is a digest of everything the bytes depend on. CheckpointError: the target exists, another writer, disk
    full, no permission; ConfigError: the unfinished output is another run's.
    """

    def __init__(self, target: Path, identity: str) -> None:
        self.target = target
        self._check()
        self._output = PartialOutput(target, self._check, resume=True, identity=identity)

    @property
    def finished(self) -> Mapping[str, Mapping[str, Any]]:
        """What ``add`` was told of every tensor that is already durable."""
        return {note["tensor"]: note["about"] for note in self._output.spool.notes}

    def add(self, name: str, data: Array, about: Mapping[str, Any]) -> None:
        """Make one tensor's bytes durable, with a JSON note on it."""
        with os_errors(self._output.directory):
            self._output.spool.add(name, data)
            self._output.spool.commit({"tensor": name, "about": dict(about)})

    def publish(self, metadata: Mapping[str, Any], tensors: list[PlannedTensor]) -> None:
        """Assemble the file, flush it, rename it to the target."""
        spool = self._output.spool
        needed, free = file_bytes(metadata, tensors), shutil.disk_usage(self._output.directory).free
        if needed > free:
            raise CheckpointError(
                f"{self.target}: the file needs {needed} bytes beside what is already written, the disk has {free}; "
                "make room and repeat the command, which continues here"
            )
        with os_errors(self._output.directory):
            staged = self._output.staged() / self.target.name
            with staged.open("wb") as file:
                writer = GgufWriter(file, metadata, tensors)
                for tensor in tensors:
                    info = spool.finished[tensor.name].info
                    with map_bytes(spool.path_of(info.file)) as piece:
                        with piece[info.offset : info.offset + info.nbytes] as data:
                            writer.write(tensor.name, [data])
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
            self._check()
            staged.rename(self.target)
            sync_directory(self.target.parent)
        self._output.release(remove=True)

    def abandon(self) -> None:
        """Delete everything written so far."""
        self._output.release(remove=True)

    def __enter__(self) -> "GgufOutput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._output.release(remove=False)

    def _check(self) -> None:
        if self.target.is_symlink() or self.target.exists():
            raise CheckpointError(f"{self.target}: exists and will not be overwritten; choose another output")
