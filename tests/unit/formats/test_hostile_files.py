# SPDX-License-Identifier: Apache-2.0
"""Truncated, lying and damaged files: each ends in one CheckpointError that names the file, fast and small."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import CONFIG, good_header, raw_file, write_model, write_plain

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats import Checkpoint


def use(directory: Path) -> dict[str, bytes]:
    """Open and read everything -> what a model would see."""
    with Checkpoint.open(directory) as checkpoint:
        seen = {name: checkpoint.tensor(name).tobytes() for name in checkpoint.names()}
        for name in checkpoint.names():
            for suffix in (".weight", ".weight_packed"):
                if name.endswith(suffix):
                    weight = checkpoint.linear(name.removesuffix(suffix))
                    if not isinstance(weight, np.ndarray):
                        weight.dequantize()
        return seen


def refusal(directory: Path, kind: type[LinnetError] = CheckpointError) -> str:
    """The one-line error of opening and reading; checks its time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        use(directory)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["b.weight"].update(changes)


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "overlap": (entry(data_offsets=[60, 76]), "'b.weight' overlaps 'a.weight'"),
    "gap": (lambda h: h["a.weight"].update(shape=[4, 3], data_offsets=[0, 48]), "before tensor 'b.weight'"),
    "same bytes twice": (entry(data_offsets=[0, 16]), "overlaps"),
    "negative begin": (entry(data_offsets=[-16, 0]), "'b.weight': data_offsets"),
    "end before begin": (entry(data_offsets=[80, 64]), "'b.weight': data_offsets"),
    "past the end": (entry(data_offsets=[64, 1 << 40]), "'b.weight': data_offsets"),
    "beyond 64 bits": (entry(data_offsets=[64, 1 << 70]), "'b.weight': data_offsets"),
    "float offsets": (entry(data_offsets=[64.0, 80.0]), "'b.weight': data_offsets"),
    "boolean offsets": (entry(data_offsets=[False, True]), "'b.weight': data_offsets"),
    "three offsets": (entry(data_offsets=[64, 80, 96]), "'b.weight': data_offsets"),
    "null offsets": (entry(data_offsets=None), "'b.weight': data_offsets"),
    "unknown dtype": (entry(dtype="F99"), "'b.weight': dtype 'F99' is not one of F64"),
    "dtype of another case": (entry(dtype="bf16"), "dtype"),
    "dtype is a number": (entry(dtype=3), "dtype"),
    "wider dtype": (entry(dtype="F32"), "'b.weight': F32 of shape [8] needs 32 bytes, its data_offsets give 16"),
    "larger shape": (entry(shape=[9]), "needs 18 bytes"),
    "huge shape": (entry(shape=[1 << 40, 1 << 40]), "needs"),
    "overflowing shape": (entry(shape=[1 << 62, 4, 8]), "needs"),
    "shape beyond 64 bits": (entry(shape=[1 << 64]), "'b.weight': shape"),
    "negative shape": (entry(shape=[-8]), "'b.weight': shape"),
    "two negatives": (entry(shape=[-2, -4]), "'b.weight': shape"),
    "float shape": (entry(shape=[8.0]), "'b.weight': shape"),
    "many dimensions": (entry(shape=[1] * 8 + [8]), "'b.weight': shape"),
    "shape is a number": (entry(shape=8), "'b.weight': shape"),
    "missing field": (lambda h: h["b.weight"].pop("shape"), "'b.weight': needs exactly"),
    "additional field": (entry(scale=1), "'b.weight': needs exactly"),
    "entry is a list": (lambda h: h.update({"b.weight": []}), "'b.weight': needs exactly"),
    "entry is null": (lambda h: h.update({"b.weight": None}), "'b.weight': needs exactly"),
    "empty name": (lambda h: h.update({"": h.pop("b.weight")}), "characters"),
    "endless name": (lambda h: h.update({"x" * 5000: h.pop("b.weight")}), "characters"),
    "tensor removed": (lambda h: h.pop("c"), "after 'b.weight' belong to no tensor"),
    "metadata is a list": (lambda h: h.update(__metadata__=[]), "__metadata__"),
    "metadata holds numbers": (lambda h: h.update(__metadata__={"a": 1}), "__metadata__"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_in_the_header(name: str, tmp_path: Path) -> None:
    change, expected = LIES[name]
    write_plain(tmp_path)
    header, data = good_header()
    change(header)
    raw_file(tmp_path / "model.safetensors", header, data)
    message = refusal(tmp_path)
    assert "model.safetensors" in message
    assert expected in message


RAW: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "no header": (b"\0" * 8, "too short"),
    "one byte": ((1).to_bytes(8, "little") + b"{", "too short"),
    "gigabyte header": ((1 << 30).to_bytes(8, "little") + b"{}", "does not fit"),
    "exabyte header": (b"\xff" * 8 + b"{}", "does not fit"),
    "list": ((4).to_bytes(8, "little") + b"[{}]", "does not begin with"),
    "space first": ((4).to_bytes(8, "little") + b" {} ", "does not begin with"),
    "not json": ((4).to_bytes(8, "little") + b"{ab}", "not valid JSON"),
    "not utf-8": ((6).to_bytes(8, "little") + b'{"\xff\xfe":', "not UTF-8"),
    "deep": ((200_001).to_bytes(8, "little") + b"{" + b'"a":{' * 40_000, "JSON"),
    "duplicate": (
        (lambda text: len(text).to_bytes(8, "little") + text)(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "duplicate key 'a'",
    ),
    "long number": ((10_008).to_bytes(8, "little") + b'{"a": ' + b"9" * 10_000 + b"} ", "not valid JSON"),
    "no tensors": ((2).to_bytes(8, "little") + b"{}", "no tensors"),
    "data nobody owns": ((2).to_bytes(8, "little") + b"{}" + b"\0" * 64, "belong to no tensor"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.", "does not fit"),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_damage(name: str, tmp_path: Path) -> None:
    data, expected = RAW[name]
    write_plain(tmp_path)
    if name == "deep":
        data = len(data[8:]).to_bytes(8, "little") + data[8:]
    (tmp_path / "model.safetensors").write_bytes(data)
    assert expected in refusal(tmp_path)


def test_a_header_above_the_cap_is_not_even_read(tmp_path: Path) -> None:
    write_plain(tmp_path)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write((64 << 20).to_bytes(8, "little") + b"{")
        file.truncate(65 << 20)  # sparse
    assert "at most" in refusal(tmp_path)


def test_every_truncation(tmp_path: Path) -> None:
    write_plain(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        assert "model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W8A8"])
def test_header_flips_are_refused_or_harmless(scheme: str, tmp_path: Path) -> None:
    """Flip bits all over the header of a published file: an error, or exactly the tensors there were."""
    write_model(tmp_path / "m", scheme)
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    expected = use(tmp_path / "m")
    length = int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(5)
    for position in [*range(8), *rng.integers(8, 8 + length, 120)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        message = ""
        try:
            assert use(tmp_path / "m") == expected
            continue
        except LinnetError as error:
            message = str(error)
        assert str(tmp_path / "m") in message
        assert "\n" not in message


def test_data_flips_are_all_detected_by_name(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        ranges = {name: (info.offset, info.nbytes) for name in checkpoint.names() for info in [checkpoint.info(name)]}
    rng = np.random.default_rng(6)
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in rng.integers(start, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        name = next(name for name, (offset, size) in ranges.items() if offset <= position < offset + size)
        assert f"tensor {name!r} is damaged" in refusal(tmp_path / "m")
        with Checkpoint.open(tmp_path / "m", verify=False):
            pass


CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "list": (b"[]", "JSON object is needed"),
    "null": (b"null", "JSON object is needed"),
    "broken": (b'{"a":', "not valid JSON"),
    "utf-16": ("{}".encode("utf-16"), "not UTF-8"),
    "duplicate": (b'{"hidden_size": 4, "hidden_size": 8}', "duplicate key"),
    "deep": (b'{"a":' * 100_000, "JSON"),
    "quantization is a list": (b'{"quantization_config": []}', "must be an object"),
    "no groups": (b'{"quantization_config": {"quant_method": "compressed-tensors"}}', "config_groups"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_config(name: str, tmp_path: Path) -> None:
    write_plain(tmp_path)
    data, expected = CONFIGS[name]
    (tmp_path / "config.json").write_bytes(data)
    message = refusal(tmp_path)
    assert "config.json" in message
    assert expected in message


def test_config_missing_large_or_no_file(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "config.json").write_bytes(b"{" + b" " * (5 << 20) + b"}")
    assert "at most" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "missing" in refusal(tmp_path)
    (tmp_path / "config.json").mkdir()
    assert "not a regular file" in refusal(tmp_path)


def test_quantised_parts_that_lie(tmp_path: Path) -> None:
    source = write_model(tmp_path / "good")

    def damaged(change: Callable[[dict[str, np.ndarray]], None]) -> str:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        (tmp_path / "bad").mkdir()
        shutil.copy(source / "config.json", tmp_path / "bad")
        with Checkpoint.open(source) as checkpoint:
            arrays = {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}
        change(arrays)
        header: dict[str, Any] = {}
        data = b""
        for name, array in arrays.items():
            stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "int64": "I64"}
            offsets = [len(data), len(data) + array.nbytes]
            header[name] = {"dtype": stored[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
            data += array.tobytes()
        raw_file(tmp_path / "bad" / "model.safetensors", header, data)
        return refusal(tmp_path / "bad")

    module = "layers.1.up"

    def set_first(value: float) -> Callable[[dict[str, np.ndarray]], None]:
        return lambda arrays: arrays[f"{module}.weight_scale"].__setitem__((0, 0), value)

    assert f"{module}.weight_scale holds NaN or infinity" in damaged(set_first(np.nan))
    assert f"{module}.weight_scale holds NaN or infinity" in damaged(set_first(-np.inf))
    assert f"{module}.weight_scale is missing" in damaged(lambda arrays: arrays.pop(f"{module}.weight_scale"))
    assert "needs 9 words" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_shape": np.array([48, 65], dtype=np.int64)})
    )
    assert "two positive integers" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_shape": np.array([48, -64], dtype=np.int64)})
    )
    assert f"{module}.weight_scale is float32 [48, 3]" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_scale": np.ones((48, 3), dtype=np.float32)})
    )
    assert f"{module}.weight_scale is int32" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_scale": np.ones((48, 4), dtype=np.int32)})
    )
    assert f"{module}.weight_packed is float32" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_packed": np.ones((48, 8), dtype=np.float32)})
    )


def test_shards_missing_swapped_or_misdescribed(tmp_path: Path) -> None:
    source = write_model(tmp_path / "good", shard_bytes=6000)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) >= 3
    bad = tmp_path / "bad"

    def fresh() -> None:
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(source, bad)

    def with_index(change: Callable[[dict[str, Any]], Any]) -> str:
        fresh()
        copy = json.loads(json.dumps(index))
        change(copy)
        (bad / "model.safetensors.index.json").write_text(json.dumps(copy))
        return refusal(bad)

    fresh()
    (bad / shards[1]).unlink()
    assert f"{shards[1]}: the shard is missing" in refusal(bad)
    fresh()
    (bad / shards[0]).rename(bad / "x")
    (bad / shards[1]).rename(bad / shards[0])
    (bad / "x").rename(bad / shards[1])
    assert f"is not in this file as the index says, it is in {shards[1]}" in refusal(bad)
    fresh()
    shutil.copy(bad / shards[0], bad / shards[1])
    refusal(bad)
    fresh()
    (bad / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json" in refusal(bad)
    name = "layers.0.norm.weight"
    assert "does not list it" in with_index(lambda copy: copy["weight_map"].pop(name))
    assert "no shard has it" in with_index(lambda copy: copy["weight_map"].update(ghost=shards[0]))
    assert "plain .safetensors name" in with_index(lambda copy: copy["weight_map"].update(ghost="../x.safetensors"))
    assert "plain .safetensors name" in with_index(lambda copy: copy["weight_map"].update(ghost="pytorch_model.bin"))
    assert "plain .safetensors name" in with_index(lambda copy: copy["weight_map"].update(ghost=7))
    assert "weight_map" in with_index(lambda copy: copy.pop("weight_map"))
    assert "weight_map" in with_index(lambda copy: copy.update(weight_map=[]))


def test_never_unpickles(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refusal(tmp_path)
    assert "pytorch_model.bin" in message
    assert "never unpickles" in message


def test_odd_kinds_of_files(tmp_path: Path) -> None:
    import os

    write_plain(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refusal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    assert "not a regular file" in refusal(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    assert "no model.safetensors" in refusal(tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        Checkpoint.open(tmp_path / "config.json")


def test_damaged_manifest(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    path = tmp_path / "m" / "linnet_manifest.json"
    good = json.loads(path.read_text())

    def with_manifest(change: Callable[[dict[str, Any]], Any], kind: type[LinnetError] = CheckpointError) -> str:
        copy = json.loads(json.dumps(good))
        change(copy)
        path.write_text(json.dumps(copy))
        return refusal(tmp_path / "m", kind)

    name = next(iter(good["tensors"]))
    assert "is damaged" in with_manifest(lambda m: m["tensors"][name].update(sha256="0" * 64))
    assert "needs dtype" in with_manifest(lambda m: m["tensors"][name].update(sha256="0"))
    assert "linnet_manifest.json says" in with_manifest(lambda m: m["tensors"][name].update(shape=[1]))
    assert "is not listed" in with_manifest(lambda m: m["tensors"].pop(name))
    assert "is missing" in with_manifest(lambda m: m["tensors"].update(ghost=good["tensors"][name]))
    assert "its digest" in with_manifest(lambda m: m.update(digest="0" * 64))
    assert "plain name" in with_manifest(lambda m: m["files"].update({"../x": "0" * 64}))
    assert "config.json: changed" in with_manifest(lambda m: m["files"].update({"config.json": "0" * 64}))
    assert "format_version" in with_manifest(lambda m: m.update(format_version=99), UnsupportedError)
