# SPDX-License-Identifier: Apache-2.0
"""Writing a GGUF file, version 3: what it will hold is planned first, then the tensors' bytes stream by, one at a time.

Order of side effects: the header, the metadata and the tensor table on construction, each tensor as it comes, zeros up
to the alignment after each. Publishing the file is the caller's business, who hands over an open file.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from linnet.errors import ConfigError
from linnet.gguf.container import DEFAULT_ALIGNMENT, MAGIC
from linnet.gguf.metadata import TextList
from linnet.gguf.table import LONGEST_NAME, MOST_DIMENSIONS
from linnet.gguf.types import TensorType

VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11
_KINDS: dict[str, int] = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": _UINT32, "int32": _INT32, "float32": _FLOAT32,
    "bool": _BOOL, "uint64": _UINT64, "int64": _INT64, "float64": 12,
}  # fmt: skip
"""numpy's name -> GGUF's value type."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to come. ``shape`` is rows first."""

    name: str
    type: TensorType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes without the zeros behind them."""
        return self.type.row_bytes(self.shape[-1]) * math.prod(self.shape[:-1])


class GgufWriter:
    """Writes to ``file`` (open for binary writing, at its start) what ``metadata`` and ``tensors`` announce.

    Metadata values: bool, str, int (uint32, or int32, uint64, int64 where that does not fit), float (float32), numpy
    scalars and one-dimensional numpy arrays (their own type), lists of one kind of these (texts, ints as int32, floats
    as float32, lists), and what ``Metadata`` gives back. Raises ConfigError for anything else, for a name or shape that
    GGUF cannot hold and for tensors in another order or size than announced.
    """

    def __init__(self, file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> None:
        self._file = file
        self._coming = list(tensors)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        self._alignment = int(alignment)
        header = _header(metadata, tensors, self._alignment)
        file.write(header)
        self._pad(len(header))

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """The bytes of the next tensor: buffers (arrays, memoryviews, bytes), in order."""
        if not self._coming or self._coming[0].name != name:
            expected = self._coming[0].name if self._coming else "the end"
            raise ConfigError(f"tensor {name!r} comes where {expected!r} was announced")
        tensor = self._coming.pop(0)
        written = 0
        for piece in pieces:
            if isinstance(piece, np.ndarray):  # bf16 has no buffer of its own
                piece = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            written += memoryview(piece).nbytes
            self._file.write(piece)
        if written != tensor.nbytes:
            raise ConfigError(f"tensor {name!r} has {written} bytes, {tensor.nbytes} were announced")
        self._pad(written)

    def finish(self) -> None:
        """ConfigError if announced tensors did not come."""
        if self._coming:
            raise ConfigError(f"{len(self._coming)} announced tensors are missing, {self._coming[0].name!r} first")

    def _pad(self, written: int) -> None:
        self._file.write(b"\0" * (-written % self._alignment))


def file_bytes(metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> int:
    """How large the file will be."""
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    sizes = [len(_header(metadata, tensors, alignment)), *(tensor.nbytes for tensor in tensors)]
    return sum(size + -size % alignment for size in sizes)


def _header(metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor], alignment: int) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(_text(key))
        kind, data = _value(key, value)
        parts.append(struct.pack("<I", kind) + data)
    offset = 0
    names: set[str] = set()
    for tensor in tensors:
        _check(tensor, names)
        sizes = tensor.shape[::-1]
        parts.append(_text(tensor.name))
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.type.id, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    return b"".join(parts)


def _check(tensor: PlannedTensor, names: set[str]) -> None:
    if not 0 < len(tensor.name.encode()) <= LONGEST_NAME or tensor.name in names:
        raise ConfigError(f"tensor name {tensor.name[:80]!r}: given twice, empty or longer than {LONGEST_NAME} bytes")
    names.add(tensor.name)
    if not 1 <= len(tensor.shape) <= MOST_DIMENSIONS or min(tensor.shape) < 1:
        raise ConfigError(
            f"tensor {tensor.name!r} of shape {list(tensor.shape)}: 1 to {MOST_DIMENSIONS} sizes from 1 up"
        )
    if tensor.shape[-1] % tensor.type.block_elements:
        raise ConfigError(
            f"tensor {tensor.name!r} has {tensor.shape[-1]} columns, no multiple of the {tensor.type.block_elements} "
            f"of a {tensor.type.name} block"
        )


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> tuple[int, bytes]:
    """Value type and bytes, the type left out."""
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, TextList):
        return _ARRAY, _list_of(_STRING, [_text(text) for text in value.raw()])
    if isinstance(value, np.ndarray):
        return _ARRAY, struct.pack("<IQ", _kind_of(key, value.dtype), value.size) + _little(value).tobytes()
    if isinstance(value, (list, tuple)):
        return _ARRAY, _list(key, value)
    number = value if isinstance(value, np.generic) else _narrow(key, value)
    return _kind_of(key, number.dtype), _little(np.asarray(number)).tobytes()


def _list(key: str, values: Sequence[Any]) -> bytes:
    if all(isinstance(value, (str, bytes)) for value in values):
        return _list_of(_STRING, [_text(value) for value in values])
    if all(isinstance(value, (list, tuple, TextList, np.ndarray)) for value in values):
        return _list_of(_ARRAY, [_value(key, value)[1] for value in values])
    for kind, dtype in ((bool, np.bool_), (int, np.int32), (float, np.float32)):
        if all(type(value) is kind for value in values):
            return _value(key, np.array(values, dtype))[1]
    raise ConfigError(f"metadata {key!r}: a list of different things; lists hold texts, numbers of one type, or lists")


def _list_of(kind: int, parts: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(parts)) + b"".join(parts)


def _narrow(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    if isinstance(value, int):
        for dtype in (np.uint32, np.int32, np.uint64, np.int64):
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return dtype(value)
    raise ConfigError(f"metadata {key!r}: {value!r:.80} of type {type(value).__name__} has no place in a GGUF file")


def _kind_of(key: str, dtype: np.dtype[Any]) -> int:
    if dtype.name not in _KINDS:
        raise ConfigError(f"metadata {key!r}: numbers of type {dtype.name} have no place in a GGUF file")
    return _KINDS[dtype.name]


def _little(array: Any) -> Any:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
