# SPDX-License-Identifier: Apache-2.0
"""One safetensors file, mapped read-only. Owns the mapping; tensors are views of it."""

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.header import TensorInfo, check_header_length, parse_header


@contextlib.contextmanager
def map_bytes(path: Path) -> Iterator[memoryview]:
    """A file's bytes, mapped read-only; release every slice before the block ends. An empty file has none."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as view:
            yield view


class MappedFile:
    """Side effects of opening: open, stat, read the header, map, close the descriptor; data pages stay untouched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        where = str(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{where}: cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{where}: not a regular file")
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            check_header_length(length, status.st_size, where)
            text = os.pread(descriptor, length, 8)
            if len(text) != length:
                raise CheckpointError(f"{where}: the header ends after {len(text)} of {length} bytes")
            self.tensors = parse_header(text, status.st_size, path.name, where)
            self._mapping = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
            with contextlib.suppress(OSError):  # what is not in the page cache yet then comes in large pages, if it can
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            raise CheckpointError(f"{where}: cannot be mapped: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def view(self, info: TensorInfo) -> npt.NDArray[Any]:
        """A read-only array over the mapped bytes.

        The one exception: bytes that old writers left unaligned for their element type are copied, since kernels may
        not read them in place.
        """
        dtype = NAME_TO_NUMPY[info.dtype]
        count = info.nbytes // dtype.itemsize
        if count == 0:
            return np.empty(info.shape, dtype=dtype)
        array = np.frombuffer(self._mapping, dtype=dtype, count=count, offset=info.offset).reshape(info.shape)
        if info.offset % dtype.itemsize:
            array = np.array(array)
            array.setflags(write=False)
        return array

    def raw(self, info: TensorInfo) -> memoryview:
        """The tensor's bytes."""
        return memoryview(self._mapping)[info.offset : info.offset + info.nbytes]

    def whole(self) -> npt.NDArray[np.uint8]:
        """All bytes of the file."""
        return np.frombuffer(self._mapping, np.uint8)

    def close(self) -> None:
        """Unmap now if no view is alive, else when the last one dies."""
        with contextlib.suppress(BufferError):
            self._mapping.close()
