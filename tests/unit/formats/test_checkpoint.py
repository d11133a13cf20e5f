# SPDX-License-Identifier: Apache-2.0
"""Reading honest directories: single, sharded, every type; views, not copies."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from model_files import CONFIG, good_header, raw_file, tensors, write_model, write_plain

from linnet.errors import CheckpointError
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.schemes import LinearScheme, PackedWeight, Scheme, parse_scheme, quantize_weight, stored_bytes


def test_types_shapes_and_bytes(tmp_path: Path) -> None:
    with Checkpoint.open(write_plain(tmp_path)) as checkpoint:
        assert checkpoint.names() == ("a.weight", "b.weight", "c")
        assert (checkpoint.info("b.weight").dtype, checkpoint.info("b.weight").shape) == ("bf16", (8,))
        assert checkpoint.info("b.weight").nbytes == 16
        assert checkpoint.info("b.weight").file == "model.safetensors"
        assert checkpoint.tensor("b.weight").dtype == ml_dtypes.bfloat16
        assert checkpoint.tensor("c").tobytes() == bytes(range(80, 96))
        assert checkpoint.nbytes == 96
        assert checkpoint.config == CONFIG
        assert checkpoint.manifest is None
        assert checkpoint.scheme_of("a") is None
        assert "c" in checkpoint
        assert "d" not in checkpoint
        with pytest.raises(CheckpointError, match="no tensor 'd'"):
            checkpoint.tensor("d")
        with pytest.raises(CheckpointError, match="nothing to verify against"):
            checkpoint.verify()


def test_arrays_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path / "m"))
    array = checkpoint.tensor("embed_tokens.weight")
    assert not array.flags["W"]
    assert np.shares_memory(array, checkpoint.tensor("embed_tokens.weight"))
    packed = checkpoint.linear("layers.0.up")
    assert isinstance(packed, PackedWeight)
    assert np.shares_memory(packed.arrays["weight_packed"], checkpoint.tensor("layers.0.up.weight_packed"))
    rows = packed.take_rows([(8, 24)])
    assert np.shares_memory(rows.arrays["weight_packed"], packed.arrays["weight_packed"])
    checkpoint.close()
    assert np.array_equal(array, tensors()["embed_tokens.weight"])  # the mapping lives as long as its views


def test_every_type_comes_back(tmp_path: Path) -> None:
    arrays = {}
    for name, dtype in NAME_TO_NUMPY.items():
        values = np.arange(12) % 2 if name == "bool" else np.arange(12)
        arrays[name] = values.astype(dtype).reshape(3, 4)
    arrays["scalar"] = np.float32(3.5).reshape(())
    arrays["empty"] = np.empty((0, 7), dtype=np.float32)
    arrays["strided"] = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::3]
    with CheckpointWriter(tmp_path / "m") as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.publish(CONFIG)
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        for name, array in arrays.items():
            back = checkpoint.tensor(name)
            assert back.dtype == array.dtype
            assert back.shape == array.shape
            assert np.array_equal(back.astype(np.float64), array.astype(np.float64))


def test_safetensors_agrees(tmp_path: Path) -> None:
    """The library is the oracle in both directions."""
    numpy_io = pytest.importorskip("safetensors.numpy")
    for path in sorted(write_model(tmp_path / "m", shard_bytes=9000).glob("*.safetensors")):
        theirs = numpy_io.load_file(path)
        with Checkpoint.open(tmp_path / "m") as checkpoint:
            assert {name for name in checkpoint.names() if checkpoint.info(name).file == path.name} == set(theirs)
            for name, array in theirs.items():
                assert checkpoint.tensor(name).tobytes() == array.tobytes()
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.json").write_text("{}")
    numpy_io.save_file(tensors(), tmp_path / "n" / "model.safetensors")
    with Checkpoint.open(tmp_path / "n") as checkpoint:
        assert all(np.array_equal(checkpoint.tensor(name), array) for name, array in tensors().items())


def test_unaligned_tensors_of_old_writers_are_copied(tmp_path: Path) -> None:
    write_plain(tmp_path)
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    raw_file(tmp_path / "model.safetensors", header, b"abc" + struct.pack("<2f", 1.5, -2))
    with Checkpoint.open(tmp_path) as checkpoint:
        array = checkpoint.tensor("b")
        assert array.tolist() == [1.5, -2]
        assert array.flags.aligned
        assert not array.flags["W"]


def test_a_single_file_of_any_name(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.info("c").file == "weights.safetensors"
    raw_file(tmp_path / "other.safetensors", *good_header())
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "scheme",
    [
        "W4A16-g16",
        "W4A16-g16-asym",
        "W8A8",
        "W3A16-g16",
        "W2A16-channel",
        "FP8",
        "NF4-g16",
        "TERNARY",
        "TERNARY-g16",
        "BINARY",
        "BINARY-g8",
    ],
)
@pytest.mark.parametrize("shard_bytes", [4000, 1 << 30])
def test_quantised_round_trip_with_exact_bytes(scheme: str, shard_bytes: int, tmp_path: Path) -> None:
    linear = parse_scheme(scheme).linear
    with Checkpoint.open(write_model(tmp_path / "m", scheme, shard_bytes=shard_bytes), verify=True) as checkpoint:
        total = 0
        for name, array in tensors().items():
            module = name.removesuffix(".weight")
            if not name.endswith(("up.weight", "down.weight")):
                total += array.nbytes
                continue
            expected = quantize_weight(array, linear)
            back = checkpoint.linear(module)
            assert isinstance(back, PackedWeight)
            assert back.scheme == expected.scheme == checkpoint.scheme_of(module)
            assert back.layout == expected.layout
            assert set(back.arrays) == set(expected.arrays)
            assert all(np.array_equal(back.arrays[key], expected.arrays[key]) for key in expected.arrays)
            stored = sum(checkpoint.info(f"{module}.{suffix}").nbytes for suffix in back.arrays)
            assert stored == stored_bytes(linear, array.shape) == back.nbytes
            total += stored
        assert checkpoint.nbytes == total
        for name in checkpoint.names():
            info = checkpoint.info(name)
            assert info.offset % NAME_TO_NUMPY[info.dtype].itemsize == 0
            assert info.offset % 64 == 0 or info.nbytes % 64


def test_digest_ignores_files_and_shards(tmp_path: Path) -> None:
    digests = set()
    for position, shard_bytes in enumerate((3000, 20_000, 1 << 30)):
        path = write_model(tmp_path / str(position), shard_bytes=shard_bytes)
        with Checkpoint.open(path) as checkpoint:
            digests.add(checkpoint.digest())
            assert checkpoint.manifest is not None
            assert checkpoint.manifest["record"] == {"recipe": "test"}
        (path / "linnet_manifest.json").unlink()
        with Checkpoint.open(path) as checkpoint:
            digests.add(checkpoint.digest())
    assert len(digests) == 1


def test_a_quantised_tensor_that_no_group_targets(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["ignore"].append("re:.*down")
    (path / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(path, verify=False) as checkpoint:
        assert isinstance(checkpoint.linear("layers.0.up"), PackedWeight)
        with pytest.raises(CheckpointError, match=r"layers\.0\.down is stored quantised but no group"):
            checkpoint.linear("layers.0.down")


def test_layouts_of_other_versions_are_made_canonical(tmp_path: Path) -> None:
    """Unpacked zero points beside packed codes (compressed-tensors before 0.9), flat scales, a trivial group index."""
    scheme = LinearScheme(Scheme("int4", "group", 16, symmetric=False, scale_dtype="fp32"))
    packed = quantize_weight(tensors()["layers.0.up.weight"], scheme)
    channel = quantize_weight(tensors()["layers.1.up.weight"], LinearScheme(Scheme("int8", "channel")))
    zero_points = packed.zero_points()
    assert zero_points is not None
    with CheckpointWriter(tmp_path / "m") as writer:
        writer.add_packed("a", packed)
        writer.add_packed("b", channel)
        writer.publish(CONFIG)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    with CheckpointWriter(tmp_path / "n") as writer:
        for name, array in packed.arrays.items():
            writer.add(f"a.{name}", zero_points if name == "weight_zero_point" else array)
        writer.add("a.weight_g_idx", np.arange(64, dtype=np.int32) // 16)
        for name, array in channel.arrays.items():
            writer.add(f"b.{name}", array.reshape(-1) if name == "weight_scale" else array)
        writer.publish({})
    (tmp_path / "n" / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(tmp_path / "n", verify=False) as checkpoint:
        for module, expected in (("a", packed), ("b", channel)):
            back = checkpoint.linear(module)
            assert isinstance(back, PackedWeight)
            assert all(np.array_equal(back.arrays[key], expected.arrays[key]) for key in expected.arrays)


def test_a_lost_manifest_is_said_and_a_model_that_never_had_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_model(tmp_path / "m")
    (directory / "linnet_manifest.json").unlink(missing_ok=True)
    Checkpoint.open(directory).close()
    assert caplog.messages == []  # anybody's model
    (directory / "README.md").write_text("---\nlibrary_name: linnet\ntags:\n- linnet\n---\n")
    with Checkpoint.open(directory) as checkpoint:
        tensors = len(checkpoint.names())
    assert caplog.messages == [
        f"{directory}: its linnet_manifest.json is gone, so whether its {tensors} tensors and its other files are as "
        "they were published is not verified"
    ]
