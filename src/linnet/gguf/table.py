# SPDX-License-Identifier: Apache-2.0
"""The tensor table of a GGUF file: names, types, shapes and where the bytes lie. Checked completely before use."""

from dataclasses import dataclass

from linnet.errors import UnsupportedError
from linnet.gguf.cursor import Cursor
from linnet.gguf.types import TENSOR_TYPES, TensorType

MOST_TENSORS = 1 << 20
MOST_DIMENSIONS = 4
LONGEST_NAME = 1024
MOST_ELEMENTS = 1 << 63


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. ``shape`` is rows first (ggml writes columns first); its bytes are [offset, offset + nbytes) of the
    file named ``file``."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, the last dimension."""
        return self.type.row_bytes(self.shape[-1])


def read_table(cursor: Cursor, count: int, file: str) -> list[GgufTensor]:
    """``count`` entries from the cursor on; offsets are still relative to the data section."""
    room = min(MOST_TENSORS, cursor.left // 24)
    if count > room:
        raise cursor.wrong(f"{count} tensors, the file has room for {room}")
    tensors: dict[str, GgufTensor] = {}
    for index in range(count):
        tensor = _entry(cursor, index, file)
        if tensor.name in tensors:
            raise cursor.wrong(f"tensor {tensor.name!r} is listed twice")
        tensors[tensor.name] = tensor
    return list(tensors.values())


def _entry(cursor: Cursor, index: int, file: str) -> GgufTensor:
    name = cursor.text(f"the name of tensor {index}", LONGEST_NAME)
    if not name or not name.isprintable():
        raise cursor.wrong(f"the name of tensor {index} is {name[:80]!r}; a printable name is needed")
    label = f"tensor {name[:200]!r}"
    dimensions = cursor.number("I", f"{label}: the number of dimensions")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.wrong(f"{label}: {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are accepted")
    shape = tuple(cursor.number("Q", f"{label}: the shape") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I", f"{label}: the type"), cursor.number("Q", f"{label}: the offset")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise UnsupportedError(
            f"{cursor.where}: {label}: type number {number}, which this version does not know; known are "
            + ", ".join(known.name for known in TENSOR_TYPES.values())
        )
    elements = 1
    for size in shape:  # Python integers do not overflow
        elements *= size
    if not 1 <= elements < MOST_ELEMENTS:
        raise cursor.wrong(f"{label}: shape {list(shape)} has {elements} elements; 1 to 2^63 - 1 are accepted")
    if shape[-1] % kind.block_elements:
        raise cursor.wrong(f"{label}: {shape[-1]} columns are not whole blocks of {kind.block_elements} ({kind.name})")
    return GgufTensor(name, kind, shape, elements // kind.block_elements * kind.block_bytes, file, offset)


def check_places(cursor: Cursor, tensors: list[GgufTensor], start: int, alignment: int) -> None:
    """Absolute places: inside the file, each begins where the one before ends (rounded up), as ggml demands."""
    file_bytes = len(cursor.data)
    position, previous = start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        label = f"tensor {tensor.name[:200]!r}"
        if tensor.offset < position:
            raise cursor.wrong(f"{label} begins at byte {tensor.offset} and overlaps {previous[:200]!r}")
        if tensor.offset > position:
            raise cursor.wrong(f"{tensor.offset - position} bytes before {label} belong to no tensor")
        end = tensor.offset + tensor.nbytes
        if end > file_bytes:
            raise cursor.wrong(
                f"{label} needs the bytes up to {end}, the file has {file_bytes}; was the download finished?"
            )
        position, previous = end + -end % alignment, tensor.name
