# SPDX-License-Identifier: Apache-2.0
"""One safetensors file, mapped read-only. Owns the mapping; tensors are views of it."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.header import TensorInfo, check_header_length, parse_header
from linnet.mapping import map_read_only


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
    """Side effects of opening: open, map, close the descriptor, read the header; data pages stay untouched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        where = str(path)
        self._mapping = map_read_only(path, "safetensors")
        size = len(self._mapping)
        length = int.from_bytes(self._mapping[:8], "little")
        check_header_length(length, size, where)
        self.tensors = parse_header(self._mapping[8 : 8 + length], size, path.name, where)

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
