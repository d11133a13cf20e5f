# SPDX-License-Identifier: Apache-2.0
"""Files that are fine one by one and wrong together: quantised parts, shards, index, manifest."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import CONFIG, raw_file, refusal, use, write_model, write_plain

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.manifest import MANIFEST_FILE

MUTANTS = int(os.environ.get("LINNET_MUTANTS", "100"))
"""Of a directory of shards; 1,000 before a release."""


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
    assert "it must have rows and columns" in damaged(
        lambda arrays: (
            arrays.pop(f"{module}.weight_shape"),
            arrays.update(
                {
                    f"{module}.weight_packed": np.ones((0, 8), dtype=np.int32),
                    f"{module}.weight_scale": np.ones((0, 2), dtype=np.float32),
                }
            ),
        )
    )
    assert f"{module}.weight_packed is float32" in damaged(
        lambda arrays: arrays.update({f"{module}.weight_packed": np.ones((48, 8), dtype=np.float32)})
    )


def _damage_index(path: Path, generator: random.Random) -> None:
    """A place of a tensor that is none, or bytes that are no index."""
    if generator.random() < 0.5:
        data = bytearray(path.read_bytes())
        data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        return
    index = json.loads(path.read_text())
    name = generator.choice(list(index["weight_map"]))
    odd = ("../model.safetensors", "/etc/passwd", "", "a" * 300, "\0", 3, None, [], generator.choice(list(index)))
    if generator.random() < 0.2:
        index["weight_map"] = generator.choice((None, [], {}, 7, {"a": "b"}))
    else:
        index["weight_map"][name] = generator.choice((*odd, *index["weight_map"].values()))
    path.write_text(json.dumps(index))


def _damage_shard(path: Path, generator: random.Random) -> None:
    """Gone, cut, longer, or a byte of its header, its length first of all."""
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    kind = generator.randrange(6)
    if kind == 0:
        path.unlink()
        return
    if kind == 1:
        del data[generator.randrange(len(data)) :]
    elif kind == 2:
        data += bytes(generator.randrange(1, 99))
    elif kind == 3:
        data[:8] = generator.choice((0, 1, header, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        data[generator.randrange(header)] = generator.randrange(256)
    path.write_bytes(data)


def test_mutants_of_shards_are_read_or_refused(tmp_path: Path) -> None:
    """What is read must be what was there: the manifest, which has the hashes, is left as it is."""
    source = write_model(tmp_path / "good", shard_bytes=6000)
    expected = use(source)
    seed = random.randrange(1 << 30)
    generator = random.Random(seed)
    read = refused = 0
    for number in range(MUTANTS):
        bad = tmp_path / f"bad-{number}"
        shutil.copytree(source, bad)
        if generator.random() < 0.5:
            _damage_index(bad / "model.safetensors.index.json", generator)
        else:
            _damage_shard(generator.choice(sorted(bad.glob("*.safetensors"))), generator)
        try:
            read += 1
            assert use(bad) == expected, f"mutant {number} of seed {seed}"
        except LinnetError as error:
            refused += "\n" not in str(error)
            read -= 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of seed {seed}") from error
        shutil.rmtree(bad)
    assert read + refused == MUTANTS, f"a refusal of more than one line; seed {seed}"
    assert refused > MUTANTS // 4


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
    assert f"{name!r} is missing, {MANIFEST_FILE} lists it" in with_index(lambda copy: copy["weight_map"].pop(name))
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


def test_the_index_decides_between_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tools that rewrite some shards leave old copies of a tensor, and tensors of an old model, in the others (K8)."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    second = entry | {"data_offsets": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    values = {"old": np.zeros(2, np.float32).tobytes(), "new": np.ones(2, np.float32).tobytes()}
    raw_file(tmp_path / "1.safetensors", {"a": entry, "b": second}, values["new"] + values["old"])
    raw_file(tmp_path / "2.safetensors", {"b": entry, "left.over": second}, values["new"] + values["old"])
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.names() == ("a", "b")
        assert all(checkpoint.tensor(name).tolist() == [1, 1] for name in "ab")
        assert checkpoint.nbytes == 16
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "2 tensors" in warning
    assert "b of 1.safetensors, left.over of 2.safetensors" in warning
