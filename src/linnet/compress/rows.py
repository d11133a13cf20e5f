# SPDX-License-Identifier: Apache-2.0
"""The hidden rows between two segments, on disk: a chunk at a time in memory, and a resume point.

File ``rows-NNN.f32`` holds what segment NNN reads: fp32 [rows, width], rows in order, little-endian as the machine;
``aims-NNN.f32`` likewise what it would read in the dense model, where a fit wants that.
``carried-0`` and ``carried-1`` hold by turns what passes between two stages of a segment; they are no resume point.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from linnet.errors import CheckpointError
from linnet.formats.durable import START_AFRESH, os_errors, read_errors, sync_directory

_PIECE_BYTES = 8 << 20


class RowStore:
    """Row files of one ``name`` in a directory that only this run writes."""

    def __init__(self, directory: Path, width: int, name: str = "rows") -> None:
        self._directory, self._width, self._name = directory, width, name

    def path(self, segment: int) -> Path:
        """The file segment ``segment`` reads."""
        return self._directory / f"{self._name}-{segment:03d}.f32"

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
        view = _bytes_of(result)
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
        for path in self._directory.glob(f"{self._name}-*"):
            if path != kept:
                with os_errors(path):
                    path.unlink()


class CarriedRows:
    """Values between two stages: written into one file while the other is read; overwritten in place, never flushed."""

    def __init__(self, directory: Path) -> None:
        self._paths = [directory / "carried-0", directory / "carried-1"]
        self._files: list[int] = []
        self._reading, self._writing = 0, 1
        self._places: dict[str, tuple[int, int]] = {}  # of what is read: name -> (offset of its rows, width)
        self._next: dict[str, tuple[int, int]] = {}

    def write(self, start: int, values: Mapping[str, torch.Tensor], tokens: int) -> None:
        """fp32 [n, width] each: rows from ``start`` on, of ``tokens`` in all."""
        with os_errors(self._paths[self._writing]):
            if not self._files:
                self._files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for path in self._paths]
            if not self._next:
                offset = 0
                for name, value in values.items():
                    width = value.shape[1]
                    self._next[name] = (offset, width)
                    offset += 4 * tokens * width
            file = self._files[self._writing]
            for name, (offset, width) in self._next.items():
                view, place = _bytes_of(values[name].contiguous()), offset + 4 * start * width
                while view:
                    count = os.pwrite(file, view, place)
                    view, place = view[count:], place + count

    def turn(self) -> None:
        """What has been written is now read."""
        self._reading, self._writing = self._writing, self._reading
        self._places, self._next = self._next, {}

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Rows [start, stop) of every value."""
        path, result = self._paths[self._reading], {}
        with read_errors(path, START_AFRESH):
            for name, (offset, width) in self._places.items():
                result[name] = torch.empty(stop - start, width)
                view, place = _bytes_of(result[name]), offset + 4 * start * width
                while view:
                    count = os.preadv(self._files[self._reading], [view], place)
                    if not count:
                        raise CheckpointError(f"{path} ends before row {stop}; {START_AFRESH}")
                    view, place = view[count:], place + count
        return result

    def close(self) -> None:
        """Delete both files."""
        for file in self._files:
            os.close(file)
        self._files = []
        for path in self._paths:
            path.unlink(missing_ok=True)


def _bytes_of(rows: torch.Tensor) -> memoryview:
    return rows.numpy().data.cast("B")


class RowWriter:
    """Appends rows and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def append(self, rows: torch.Tensor) -> None:
        """fp32 [n, width]."""
        view = _bytes_of(rows.contiguous())
        self._hash.update(view)
        while view:
            view = view[self._file.write(view) :]

    def digest(self) -> str:
        """SHA-256 of everything appended."""
        return self._hash.hexdigest()
