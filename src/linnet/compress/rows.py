# SPDX-License-Identifier: Apache-2.0
"""The hidden rows between two segments, on disk: a chunk at a time in memory, and a resume point.

File ``rows-NNN.f32`` holds what segment NNN reads: fp32 [rows, width], rows in order, little-endian as the machine.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from linnet.errors import CheckpointError
from linnet.formats.durable import START_AFRESH, os_errors, read_errors, sync_directory

_PIECE_BYTES = 8 << 20


class RowStore:
    """Row files in one directory that only this run writes."""

    def __init__(self, directory: Path, width: int) -> None:
        self._directory, self._width = directory, width

    def path(self, segment: int) -> Path:
        """The file segment ``segment`` reads."""
        return self._directory / f"rows-{segment:03d}.f32"

    @contextmanager
    def write(self, segment: int) -> "Iterator[RowWriter]":
        """Write a whole file; it has its name, durably, when the block ends without an error."""
        path = self.path(segment)
        unfinished = path.with_suffix(".partial")
        with os_errors(path), open(unfinished, "wb", buffering=0) as file:
            writer = RowWriter(file)
            yield writer
            os.fsync(file.fileno())
            os.replace(unfinished, path)
            sync_directory(self._directory)

    def read(self, segment: int, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as a fresh, aligned tensor."""
        result = torch.empty(stop - start, self._width)
        view = result.numpy().data.cast("B")
        path = self.path(segment)
        with read_errors(path, START_AFRESH), open(path, "rb", buffering=0) as file:
            file.seek(start * self._width * 4)
            while view:
                count = file.readinto(view)
                if not count:
                    raise CheckpointError(f"{path} ends before row {stop}; {START_AFRESH}")
                view = view[count:]
        return result

    def verify(self, segment: int, digest: str) -> None:
        """CheckpointError unless the file still has this SHA-256."""
        path, found = self.path(segment), hashlib.sha256()
        with read_errors(path, START_AFRESH), open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                found.update(piece)
        if found.hexdigest() != digest:
            raise CheckpointError(f"{path} is damaged; {START_AFRESH}")

    def keep_only(self, segment: int | None) -> None:
        """Delete every row file but the one ``segment`` reads."""
        kept = None if segment is None else self.path(segment)
        for path in self._directory.glob("rows-*"):
            if path != kept:
                with os_errors(path):
                    path.unlink()


class RowWriter:
    """Appends rows and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def append(self, rows: torch.Tensor) -> None:
        """fp32 [n, width]."""
        view = rows.contiguous().numpy().data.cast("B")
        self._hash.update(view)
        while view:
            view = view[self._file.write(view) :]

    def digest(self) -> str:
        """SHA-256 of everything appended."""
        return self._hash.hexdigest()
