# SPDX-License-Identifier: Apache-2.0
"""GGUF files as the reference package writes them: the same values, shapes and bytes come back, mapped."""

import struct
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
from gguf_files import TOKENS, by_hand, entry, everything, pair, refusal, small_tensors, write_small  # noqa: E402

from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.gguf import GgufModel, is_gguf, split_set  # noqa: E402


def test_every_value_type(tmp_path: Path) -> None:
    with GgufModel(write_small(tmp_path / "a.gguf")) as model:
        data = model.metadata
        assert data["n.u8"] == 200
        assert data["n.i8"] == -100
        assert data["n.u16"] == 60000
        assert data["n.i16"] == -30000
        assert data["n.u32"] == 4_000_000_000
        assert data["n.i32"] == -2_000_000_000
        assert data["n.u64"] == 2**64 - 1
        assert data["n.i64"] == -(2**63)
        assert data.number("n.f32") == 1e-5, "the shortest decimal of the float32"
        assert data.number("n.f64") == 0.1
        assert data.flag("n.yes") is True
        assert data.text("n.text") == "Grüße 😀"
        assert data.text("general.architecture") == "small"
        assert data.texts("n.texts") == TOKENS
        assert data["n.numbers"].tolist() == [3, -1, 2]
        assert data["n.floats"].tolist() == [0.5, -1000.0]
        assert data["n.flags"].tolist() == [True, False, True]
        assert [list(row) for row in data["n.nested"]] == [[1, 2], [3, 4]]


def test_every_tensor_against_the_reference_reader(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with GgufModel(path) as model:
        assert list(model.tensors) == list(theirs)
        for name, tensor in model.tensors.items():
            assert tensor.shape == tuple(int(size) for size in theirs[name].shape[::-1])
            assert tensor.type.name == theirs[name].tensor_type.name
            assert tensor.offset == theirs[name].data_offset
            assert tensor.nbytes == theirs[name].n_bytes
            assert model.view(name).tobytes() == theirs[name].data.tobytes()
        for name, expected in small_tensors().items():
            np.testing.assert_array_equal(model.view(name), expected)
            assert model.view(name).dtype == expected.dtype
        blocks = model.view("quantised.weight")
        assert (blocks.dtype, blocks.shape, model.tensors["quantised.weight"].shape) == (np.uint8, (4, 36), (4, 64))


def test_arrays_are_mapped_and_outlive_the_model(tmp_path: Path) -> None:
    model = GgufModel(write_small(tmp_path / "a.gguf"))
    view = model.view("experts.weight")
    assert not view.flags["W"]
    assert np.shares_memory(view, model.parts[0].whole())
    model.close()
    np.testing.assert_array_equal(view, small_tensors()["experts.weight"])


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_alignment(alignment: int, tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.gguf", alignment)
    with GgufModel(path) as model:
        assert all(tensor.offset % alignment == 0 for tensor in model.tensors.values())
        np.testing.assert_array_equal(model.view("half.weight"), small_tensors()["half.weight"])


def test_version_2_is_read_and_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    pairs = [pair("general.architecture", 8, struct.pack("<Q", 1) + b"x")]
    path.write_bytes(by_hand(pairs, [entry("t", (2, 1))], bytes(8), version=2))
    with GgufModel(path) as model:
        assert model.parts[0].version == 2
        assert model.view("t").shape == (1, 2)
    for version, words in [(1, "GGUF version 1, an early form"), (4, "version 4"), (3 << 24, "big-endian")]:
        path.write_bytes(by_hand(version=version))
        with pytest.raises(UnsupportedError, match=words):
            GgufModel(path)


def test_values_of_another_type_are_refused_by_name(tmp_path: Path) -> None:
    with GgufModel(write_small(tmp_path / "a.gguf")) as model:
        data = model.metadata
        for read, key, words in [
            (data.integer, "n.text", "n.text is 'Grüße 😀'; a whole number is needed"),
            (data.integer, "n.yes", "n.yes is True; a whole number is needed"),
            (data.integer, "n.f32", "n.f32 is 1e-05; a whole number is needed"),
            (data.text, "n.texts", "n.texts is a list of 6 texts; a text is needed"),
            (data.flag, "n.u8", "n.u8 is 200; true or false is needed"),
            (data.numbers, "n.u8", "n.u8 is 200; a list of numbers is needed"),
            (data.texts, "n.numbers", "n.numbers is a list of 3 numbers; a list of texts is needed"),
        ]:
            with pytest.raises(CheckpointError) as caught:
                read(key)
            assert words in str(caught.value)
        assert data.integer("absent") is None
        assert data.text("absent", "x") == "x"
        assert data.texts("absent") is None


def test_texts_that_are_no_unicode_are_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    broken = struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 1) + b"\xff"
    path.write_bytes(by_hand([pair("tokens", 9, broken)]))
    with GgufModel(path) as model:
        assert model.metadata["tokens"].raw() == [b"a", b"\xff"]
        with pytest.raises(CheckpointError, match="tokens: entry 1 is not UTF-8"):
            model.metadata.texts("tokens")


def test_is_gguf(tmp_path: Path) -> None:
    assert is_gguf(write_small(tmp_path / "a.gguf"))
    (tmp_path / "b").write_bytes(b"GGU")
    assert not is_gguf(tmp_path / "b")
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "absent")


def _write_set(directory: Path) -> list[Path]:
    write_small(directory / "m.gguf", split_max_tensors=2)
    found = sorted(directory.glob("*.gguf"))
    assert [path.name for path in found] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


def test_a_split_set_is_one_model(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    parts = _write_set(tmp_path / "set")
    whole = everything(write_small(tmp_path / "whole.gguf"))
    for part in parts:  # any of them opens the set
        seen = everything(part)
        assert {name: seen[name] for name in whole} == whole
        assert split_set(part) == parts
    with GgufModel(parts[1]) as model:
        assert [part.path for part in model.parts] == parts


def test_a_split_set_that_is_not_whole(tmp_path: Path) -> None:
    first, second, third = _write_set(tmp_path)
    data = third.read_bytes()
    third.unlink()
    assert "one of 3 parts of a model, of which 1 are missing here: m-00003-of-00003.gguf" in refusal(first)
    third.write_bytes(second.read_bytes())
    assert "split.no and split.count are 1 and 3, its name says 2 and 3" in refusal_of_set(first)
    third.write_bytes(data)
    alone = tmp_path / "alone.gguf"
    first.rename(alone)
    assert "whose name must end in -00001-of-00003.gguf" in refusal(alone)


def refusal_of_set(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        GgufModel(path)
    return str(caught.value)
