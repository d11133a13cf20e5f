# SPDX-License-Identifier: Apache-2.0
"""The safetensors header: eight bytes of length, JSON, data. Checked completely before any data is touched.

Every refusal is a CheckpointError naming the file and, where there is one, the tensor.
"""

from dataclasses import dataclass
from typing import Any

from linnet.errors import CheckpointError
from linnet.formats.dtypes import NAME_TO_NUMPY, SAFETENSORS_TO_NAME
from linnet.formats.json_file import parse_json_object

MAX_HEADER_BYTES = 32 << 20
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 1024
METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint. ``dtype`` is fp32, bf16, fp16, fp8_e4m3, int8, int32 ...; ``file`` its file's name.

    Its bytes are [offset, offset + nbytes) of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int


def check_header_length(length: int, file_bytes: int, where: str) -> None:
    """Before anything is allocated: the header must lie inside the file and under the cap."""
    if file_bytes < 8:
        raise CheckpointError(f"{where}: {file_bytes} bytes are too short for a safetensors file")
    if length > file_bytes - 8:
        raise CheckpointError(f"{where}: header of {length} bytes does not fit into the file of {file_bytes} bytes")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{where}: header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    if length < 2:
        raise CheckpointError(f"{where}: header of {length} bytes is too short to be a JSON object")


def parse_header(text: bytes, file_bytes: int, file_name: str, where: str) -> dict[str, TensorInfo]:
    """Header text -> tensors in file order. The data section must be covered exactly: no gap, no overlap, no rest."""
    if text[:1] != b"{":
        raise CheckpointError(f"{where}: header does not begin with '{{'")
    entries = parse_json_object(text, f"{where}: header")
    metadata = entries.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: {METADATA_KEY} must map strings to strings")
    start = 8 + len(text)
    data_bytes = file_bytes - start
    tensors = {name: _tensor(name, entry, data_bytes, file_name, start, where) for name, entry in entries.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes))
    position, previous = start, "the header"
    for name, info in ordered:
        if info.offset < position:
            raise CheckpointError(f"{where}: tensor {name!r} overlaps {previous!r}")
        if info.offset > position:
            raise CheckpointError(f"{where}: {info.offset - position} bytes before tensor {name!r} belong to no tensor")
        position, previous = info.offset + info.nbytes, name
    if position != file_bytes:
        raise CheckpointError(f"{where}: {file_bytes - position} bytes after {previous!r} belong to no tensor")
    return dict(ordered)


def _tensor(name: str, entry: Any, data_bytes: int, file_name: str, start: int, where: str) -> TensorInfo:
    shown = f"{where}: tensor {name[:200]!r}"
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise CheckpointError(f"{shown}: a name has 1 to {MAX_NAME_CHARACTERS} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{shown}: needs exactly dtype, shape and data_offsets")
    stored, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(stored, str) or stored not in SAFETENSORS_TO_NAME:
        raise CheckpointError(f"{shown}: dtype {str(stored)[:40]!r} is not one of {', '.join(SAFETENSORS_TO_NAME)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(size) for size in shape):
        raise CheckpointError(
            f"{shown}: shape {str(shape)[:80]} must be at most {MAX_DIMENSIONS} non-negative integers"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError(f"{shown}: data_offsets {str(offsets)[:80]} must be two non-negative integers")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise CheckpointError(f"{shown}: data_offsets [{begin}, {end}] do not lie inside the {data_bytes} data bytes")
    dtype = SAFETENSORS_TO_NAME[stored]
    needed = NAME_TO_NUMPY[dtype].itemsize
    for size in shape:  # Python integers do not overflow
        needed *= size
    if needed != end - begin:
        raise CheckpointError(
            f"{shown}: {stored} of shape {shape} needs {needed} bytes, its data_offsets give {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), needed, file_name, start + begin)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
