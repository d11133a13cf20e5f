# SPDX-License-Identifier: Apache-2.0
"""Truncated, lying and damaged files: each ends in one CheckpointError that names the file, fast and small."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import good_header, raw_file, refusal, use, write_model, write_plain

from linnet.errors import LinnetError
from linnet.formats import Checkpoint


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


@pytest.mark.slow
def test_three_thousand_mutants(tmp_path: Path) -> None:
    """Every byte of the header with one flipped bit, a thousand data flips, every 64th truncation."""
    expected = use(write_model(tmp_path / "m", "W4A16-g16-asym"))
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(7)
    positions = [*range(start), *rng.integers(start, len(whole), 1000)]
    mutants = [bytes([*whole[:p], whole[p] ^ (1 << int(rng.integers(8))), *whole[p + 1 :]]) for p in positions]
    mutants += [whole[:size] for size in range(0, len(whole), 64)]
    assert len(mutants) >= 3000
    refused = 0
    for position, mutant in enumerate(mutants):
        path.write_bytes(mutant)
        begin = time.monotonic()
        message = ""
        try:
            assert use(tmp_path / "m") == expected
            assert position < start, "damaged data went unnoticed"
            continue
        except LinnetError as error:
            message = str(error)
        refused += 1
        assert time.monotonic() - begin < 5
        assert str(tmp_path / "m") in message
        assert "\n" not in message
    assert refused > len(mutants) * 0.8
