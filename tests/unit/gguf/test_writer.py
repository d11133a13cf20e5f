# SPDX-License-Identifier: Apache-2.0
"""GGUF files as written: read back by ggml's own Python and by Linnet, value for value, byte for byte."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from linnet.errors import ConfigError
from linnet.gguf import NAMED_TYPES, GgufModel, GgufWriter, PlannedTensor, file_bytes

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Zaunkönig 🐦",
    "llama.block_count": 30,
    "llama.rope.freq_base": 1e4,
    "a.flag": True,
    "a.negative": -7,
    "a.large": 1 << 40,
    "a.very_negative": -(1 << 40),
    "a.byte": np.uint8(200),
    "a.short": np.int16(-300),
    "a.double": np.float64(0.1),
    "tokenizer.ggml.tokens": ["<s>", "", "ö", "\n"],
    "tokenizer.ggml.scores": [0.5, -1.0, 2.0, 3.0],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "a.flags": [True, False],
    "a.unsigned": np.array([1, 2, 3], np.uint32),
    "a.nested": [["x"], ["y", "z"]],
    "a.empty": [],
}
TENSORS = [
    PlannedTensor("token_embd.weight", NAMED_TYPES["Q8_0"], (5, 64)),
    PlannedTensor("output_norm.weight", NAMED_TYPES["F32"], (7,)),
    PlannedTensor("blk.0.ffn_down.weight", NAMED_TYPES["F16"], (3, 5)),
    PlannedTensor("blk.0.exps.weight", NAMED_TYPES["Q4_K"], (2, 3, 256)),
]


def written(path: Path) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    data = {tensor.name: generator.bytes(tensor.nbytes) for tensor in TENSORS}
    with path.open("wb") as file:
        writer = GgufWriter(file, METADATA, TENSORS)
        for tensor in TENSORS:
            half = tensor.nbytes // 2
            writer.write(tensor.name, [data[tensor.name][:half], np.frombuffer(data[tensor.name][half:], np.uint8)])
        writer.finish()
    return data


def test_ggml_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = written(path)
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [tensor.name for tensor in TENSORS]
    for tensor in TENSORS:
        assert found[tensor.name].data.tobytes() == data[tensor.name]
        assert found[tensor.name].tensor_type.name == tensor.type.name
        assert tuple(found[tensor.name].shape)[::-1] == tensor.shape
        assert found[tensor.name].data_offset % 32 == 0
    kinds = {key: [kind.name for kind in reader.fields[key].types] for key in METADATA}
    assert kinds["llama.block_count"] == ["UINT32"]
    assert kinds["llama.rope.freq_base"] == ["FLOAT32"]
    numbers = ("flag", "negative", "large", "very_negative", "byte", "short", "double")
    assert [kinds[f"a.{key}"][0] for key in numbers] == [
        "BOOL",
        "INT32",
        "UINT64",
        "INT64",
        "UINT8",
        "INT16",
        "FLOAT64",
    ]
    assert kinds["tokenizer.ggml.token_type"] == ["ARRAY", "INT32"]
    assert kinds["tokenizer.ggml.scores"] == ["ARRAY", "FLOAT32"]
    for key in ("general.name", "a.large", "a.double", "tokenizer.ggml.tokens", "a.flags"):
        assert reader.fields[key].contents() == METADATA[key]


def test_linnet_reads_it_and_writes_what_it_read(tmp_path: Path) -> None:
    path, again = tmp_path / "model.gguf", tmp_path / "again.gguf"
    data = written(path)
    assert path.stat().st_size == file_bytes(METADATA, TENSORS)
    with GgufModel(path) as model:
        assert {name: bytes(model.raw(name)) for name in model.tensors} == data
        assert model.metadata.texts("tokenizer.ggml.tokens") == METADATA["tokenizer.ggml.tokens"]
        assert [entry.decode() for entry in model.metadata["a.nested"]] == METADATA["a.nested"]
        planned = [PlannedTensor(tensor.name, tensor.type, tensor.shape) for tensor in model.tensors.values()]
        copied = {**model.metadata, **{key: METADATA[key] for key in ("a.byte", "a.short", "a.double")}}
        with again.open("wb") as file:
            writer = GgufWriter(file, copied, planned)
            for name in model.tensors:
                writer.write(name, [model.raw(name)])
            writer.finish()
        model.close()
    assert again.read_bytes() == path.read_bytes()


def test_it_is_what_ggml_s_own_writer_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    peer = GGUFWriter(theirs, "llama")
    peer.add_uint32("llama.block_count", 2)
    peer.add_float32("llama.rope.freq_base", 5e5)
    peer.add_bool("a.flag", False)
    peer.add_array("tokens", ["a", "b"])
    peer.add_array("types", [1, 2])
    peer.add_key_value("half", np.float64(0.5), GGUFValueType.FLOAT64)
    peer.add_tensor("a.weight", values)
    peer.add_tensor("b.weight", values.astype(np.float16))
    peer.write_header_to_file()
    peer.write_kv_data_to_file()
    peer.write_tensors_to_file()
    peer.close()
    metadata = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.rope.freq_base": 5e5, "a.flag": False,
        "tokens": ["a", "b"], "types": [1, 2], "half": np.float64(0.5),
    }  # fmt: skip
    planned = [
        PlannedTensor("a.weight", NAMED_TYPES["F32"], (3, 4)),
        PlannedTensor("b.weight", NAMED_TYPES["F16"], (3, 4)),
    ]
    with ours.open("wb") as file:
        writer = GgufWriter(file, metadata, planned)
        writer.write("a.weight", [values])
        writer.write("b.weight", [values.astype(np.float16)])
        writer.finish()
    assert ours.read_bytes() == theirs.read_bytes()


def test_another_alignment_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        writer = GgufWriter(file, {"general.alignment": 256}, TENSORS[1:2])
        writer.write("output_norm.weight", [bytes(28)])
    with GgufModel(path) as model:
        assert model.tensors["output_norm.weight"].offset % 256 == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": None}, "'a': None of type NoneType has no place"),
        ({"a": [1, "x"]}, "'a': a list of different things"),
        ({"a": np.array([1 + 2j])}, "'a': numbers of type complex128"),
        ({"a": 1 << 70}, "has no place"),
    ],
)
def test_values_that_gguf_cannot_hold(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GgufWriter(io.BytesIO(), metadata, [])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([TENSORS[0], TENSORS[0]], "given twice"),
        ([PlannedTensor("", NAMED_TYPES["F32"], (1,))], "empty"),
        ([PlannedTensor("a", NAMED_TYPES["F32"], (1,) * 5)], "1 to 4 sizes"),
        ([PlannedTensor("a", NAMED_TYPES["F32"], (0, 4))], "sizes from 1 up"),
        ([PlannedTensor("a", NAMED_TYPES["Q4_K"], (2, 96))], "96 columns, no multiple of the 256 of a Q4_K block"),
    ],
)
def test_tensors_that_gguf_cannot_hold(tensors: list[PlannedTensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GgufWriter(io.BytesIO(), {}, tensors)


def test_tensors_come_as_announced() -> None:
    writer = GgufWriter(io.BytesIO(), {}, TENSORS)
    with pytest.raises(ConfigError, match=r"'output_norm.weight' comes where 'token_embd.weight' was announced"):
        writer.write("output_norm.weight", [bytes(28)])
    with pytest.raises(ConfigError, match="has 3 bytes, 340 were announced"):
        writer.write("token_embd.weight", [b"abc"])
    with pytest.raises(ConfigError, match=r"3 announced tensors are missing, 'output_norm.weight' first"):
        writer.finish()
