# SPDX-License-Identifier: Apache-2.0
"""Small GGUF files: by the reference package's writer, and by hand where a file has to lie."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from linnet.errors import LinnetError
from linnet.gguf import GgufModel

TOKENS = ["<unk>", "a", "▁b", "", "😀", "x" * 300]


def write_small(path: Path, alignment: int | None = None, **split: Any) -> Path:
    """Every kind of value and several kinds of tensor."""
    writer = gguf.GGUFWriter(path, "small", **split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("n.u8", 200)
    writer.add_int8("n.i8", -100)
    writer.add_uint16("n.u16", 60000)
    writer.add_int16("n.i16", -30000)
    writer.add_uint32("n.u32", 4_000_000_000)
    writer.add_int32("n.i32", -2_000_000_000)
    writer.add_uint64("n.u64", 2**64 - 1)
    writer.add_int64("n.i64", -(2**63))
    writer.add_float32("n.f32", 1e-5)
    writer.add_float64("n.f64", 0.1)
    writer.add_bool("n.yes", True)
    writer.add_string("n.text", "Grüße 😀")
    writer.add_array("n.texts", TOKENS)
    writer.add_array("n.numbers", [3, -1, 2])
    writer.add_array("n.floats", [0.5, -1000.0])
    writer.add_array("n.flags", [True, False, True])
    writer.add_array("n.nested", [[1, 2], [3, 4]])
    for name, tensor in small_tensors().items():
        writer.add_tensor(name, tensor)
    blocks = np.arange(4 * 2 * 18, dtype=np.uint8).reshape(4, 36)
    writer.add_tensor("quantised.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_tensors() -> dict[str, np.ndarray[Any, Any]]:
    """The plain ones."""
    rng = np.random.default_rng(1)
    return {
        "norm.weight": rng.standard_normal(5).astype(np.float32),
        "half.weight": rng.standard_normal((3, 7)).astype(np.float16),
        "experts.weight": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "ids": np.arange(6, dtype=np.int32),
    }


def text(value: str | bytes) -> bytes:
    """A length-prefixed text."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A line of the tensor table; ``shape`` as ggml writes it, columns first."""
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def by_hand(
    pairs: list[bytes] | None = None,
    entries: list[bytes] | None = None,
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file from its pieces; ``counts`` (tensors, entries) may lie."""
    pairs, entries = pairs or [], entries or []
    tensors, keys = counts or (len(entries), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs) + b"".join(entries)
    return head + b"\0" * (-len(head) % 32) + data


def everything(path: Path) -> dict[str, Any]:
    """All that a reader of the file can see."""
    with GgufModel(path) as model:
        seen: dict[str, Any] = {}
        for key in model.metadata:
            value = model.metadata[key]
            if hasattr(value, "decode"):
                value = tuple(value.decode())
            seen[key] = repr(value.tolist() if isinstance(value, np.ndarray) else value)
        for name, tensor in model.tensors.items():
            seen[f"tensor {name}"] = (tensor.type.name, tensor.shape, bytes(model.raw(name)))
            assert model.view(name).nbytes == tensor.nbytes
        return seen


def refusal(path: Path) -> str:
    """The one sentence that opening and reading this file ends in."""
    try:
        everything(path)
    except LinnetError as error:
        message = str(error)
        assert path.name in message
        assert "\n" not in message
        return message
    raise AssertionError("the file was read")
