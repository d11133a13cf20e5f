# SPDX-License-Identifier: Apache-2.0
"""One safetensors file, read by copying, for files that may change while they are read.

What is cut off under a mapping ends the process (SIGBUS); here it is a CheckpointError. What is written over is other
numbers: whoever needs them to be those of another time compares a digest.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.header import TensorInfo, check_header_length, parse_header
from linnet.mapping import opened


class CopiedFile:
    """Its tensors are read when they are asked for. Made by ``copied_file``."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        """Reads the header. Raises CheckpointError."""
        self.path, self._descriptor = path, descriptor
        where = str(path)
        length = int.from_bytes(self._read(0, min(size, 8)).tobytes(), "little")
        check_header_length(length, size, where)
        self.tensors = parse_header(self._read(8, length).tobytes(), size, path.name, where)

    def copy(self, info: TensorInfo) -> npt.NDArray[Any]:
        """A tensor in memory of its own. Raises CheckpointError where the file has become shorter."""
        return self._read(info.offset, info.nbytes).view(NAME_TO_NUMPY[info.dtype]).reshape(info.shape)

    def _read(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        found = np.empty(count, np.uint8)
        done = 0
        while done < count:
            part = os.preadv(self._descriptor, [found[done:].data], offset + done)
            if not part:
                left = os.fstat(self._descriptor).st_size
                raise CheckpointError(f"{self.path}: has become shorter while it was read, {left} bytes")
            done += part
        return found


@contextlib.contextmanager
def copied_file(path: Path) -> Iterator[CopiedFile]:
    """Open a file until the block ends. Raises CheckpointError and OSError."""
    with opened(path, "safetensors") as (descriptor, size):
        yield CopiedFile(path, descriptor, size)
