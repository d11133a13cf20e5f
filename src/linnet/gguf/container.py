# SPDX-License-Identifier: Apache-2.0
"""A GGUF file, opened: metadata, tensor table and mapped bytes, read-only. Versions 2 and 3.

Layout (ggml's docs/gguf.md): magic, version, number of tensors, number of metadata entries; the entries; the tensor
table; zeros up to the alignment; the tensors' bytes. Order on opening: map, metadata, table, places of the tensors;
the tensors' bytes stay untouched.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.gguf.cursor import Cursor
from linnet.gguf.metadata import Metadata, read_metadata
from linnet.gguf.table import GgufTensor, check_places, read_table
from linnet.mapping import map_read_only

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_ALIGNMENT = 1 << 20
PLAIN_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}

Array = npt.NDArray[Any]


class GgufPart:
    """One file: a whole model, or a part of one (see ``gguf.model``). Raises CheckpointError for a damaged file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapping = map_read_only(path, "GGUF")
        cursor = Cursor(self._mapping, str(path))
        self.version, tensors, entries = _read_start(cursor)
        self.metadata = read_metadata(cursor, entries)
        table = read_table(cursor, tensors, path.name)
        alignment = _alignment(self.metadata)
        start = cursor.at + -cursor.at % alignment
        placed = [replace(tensor, offset=start + tensor.offset) for tensor in table]
        check_places(cursor, placed, start, alignment)
        self.tensors = {tensor.name: tensor for tensor in placed}

    def view(self, tensor: GgufTensor) -> Array:
        """A read-only array over the mapped bytes: the numbers in their shape for a plain type, else uint8 with the
        last dimension in bytes: [rows, bytes per row]."""
        if tensor.type.plain:
            dtype, shape = PLAIN_DTYPES[tensor.type.name], tensor.shape
        else:
            dtype, shape = np.dtype(np.uint8), (*tensor.shape[:-1], tensor.row_bytes)
        count = tensor.nbytes // dtype.itemsize
        array = np.frombuffer(self._mapping, dtype, count, tensor.offset).reshape(shape)
        if tensor.offset % dtype.itemsize:  # an alignment below the element: kernels may not read it in place
            array = array.copy()
            array.setflags(write=False)
        return array

    def raw(self, tensor: GgufTensor) -> memoryview:
        """The tensor's bytes."""
        return memoryview(self._mapping)[tensor.offset : tensor.offset + tensor.nbytes]

    def whole(self) -> npt.NDArray[np.uint8]:
        """All bytes of the file."""
        return np.frombuffer(self._mapping, np.uint8)

    def close(self) -> None:
        """Unmap now if no view is alive, else when the last one dies."""
        with contextlib.suppress(BufferError):
            self._mapping.close()


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as a GGUF file does."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _read_start(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata entries."""
    if bytes(cursor.data[:4]) != MAGIC:
        raise cursor.wrong(f"not a GGUF file: it begins with {bytes(cursor.data[:4])!r}, not with {MAGIC!r}")
    cursor.skip(len(MAGIC), "the magic number")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            raise UnsupportedError(f"{cursor.where}: a big-endian GGUF file; little-endian ones are read")
        hint = ", an early form that llama.cpp no longer reads either" if version == 1 else ""
        raise UnsupportedError(f"{cursor.where}: GGUF version {version}{hint}; versions 2 and 3 are read")
    return version, cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of metadata entries")


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment is None or not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(
            f"{metadata.where}: general.alignment is {alignment}; a power of two up to {MOST_ALIGNMENT} is needed"
        )
    return alignment
