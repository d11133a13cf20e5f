# SPDX-License-Identifier: Apache-2.0
"""Conversion of the bundled model: what is exact stays exact, what is lost is told, nothing is half-written."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conversions import DEMO, gguf, hash_of, quantised

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.convert import Conversion, parse_target, to_directory
from linnet.formats.convert.importance import read_importance
from linnet.formats.gguf.metadata import architecture_for
from linnet.gguf import NAMED_TYPES, GgufModel, GgufWriter, PlannedTensor
from linnet.schemes import PackedWeight, Scheme


@pytest.mark.parametrize("text", ["gguf:Q4_K", "GGUF:q8_0", "dense", "dense:f32", "compressed-tensors"])
def test_targets_by_name(text: str) -> None:
    target = parse_target(text)
    assert str(target).lower() == ("dense:bf16" if text == "dense" else text.lower())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnx", "nothing is converted to 'onnx'; accepted: gguf:TYPE with BF16"),
        ("gguf", "gguf needs a type; accepted: gguf:BF16"),
        ("gguf:IQ4_XS", "'IQ4_XS' is no type that gguf is written in"),
        ("compressed-tensors:int4", "compressed-tensors takes no type"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_target(text)


@pytest.mark.parametrize("wanted", ["BF16", "F32"])
def test_plain_numbers_are_exact(wanted: str, tmp_path: Path) -> None:
    made = gguf(DEMO, tmp_path / "model.gguf", wanted, exact=True)
    assert (made.exact, made.verified, made.relative_error) == (True, True, 0.0)
    assert made.sha256 == hash_of(DEMO) == hash_of(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("wanted", "types", "lost"),
    [
        ("Q4_0", {"Q4_0", "Q6_K", "F32"}, 0.1),
        ("Q4_1", {"Q4_1", "Q6_K", "F32"}, 0.09),
        ("Q8_0", {"Q8_0", "F32"}, 0.006),
        ("Q4_K", {"Q4_K", "Q5_0", "Q6_K", "F32"}, 0.08),
        ("Q5_K", {"Q5_K", "Q5_1", "Q6_K", "F32"}, 0.04),
        ("Q6_K", {"Q6_K", "Q8_0", "F32"}, 0.02),
    ],
)
def test_rounding_says_what_it_costs_before_it_writes(
    wanted: str, types: set[str], lost: float, tmp_path: Path
) -> None:
    target, told = tmp_path / "model.gguf", []

    def announce(conversion: Conversion) -> None:
        assert not target.exists()
        told.append(conversion)

    made = gguf(DEMO, target, wanted, announce=announce)
    assert told == [made]
    assert set(made.types()) == types
    assert 0 < made.relative_error < lost
    assert made.relative_error < made.worst[1] < 2 * lost
    with Checkpoint.open(DEMO) as before, Checkpoint.open(target) as after:
        errors, powers = 0.0, 0.0
        for name in before.names():
            weight = after.linear(name.removesuffix(".weight"))
            numbers = weight.dequantize() if isinstance(weight, PackedWeight) else weight.astype(np.float32)
            original = before.tensor(name).astype(np.float64)
            errors, powers = errors + ((numbers - original) ** 2).sum(), powers + (original**2).sum()
    assert made.relative_error == pytest.approx(np.sqrt(errors / powers), rel=1e-5)
    assert made.target_bytes <= target.stat().st_size < made.target_bytes + 16384
    assert GgufModel(target).metadata["llama.block_count"] == 5


@pytest.mark.parametrize(
    ("scheme", "wanted", "type"),
    [
        (Scheme("int4", "group", 32, scale_dtype="fp16"), "Q4_0", "Q4_0"),
        (Scheme("int4", "group", 128), "Q4_0", "Q4_0"),
        (Scheme("int4", "channel", scale_dtype="fp16"), "Q4_K", "Q4_0"),
        (Scheme("int4", "group", 64, symmetric=False, scale_dtype="fp16"), "Q4_0", "Q5_0"),
        (Scheme("int8", "channel", scale_dtype="fp16"), "Q8_0", "Q8_0"),
        (Scheme("int3", "group", 32, scale_dtype="fp16"), "Q4_0", "Q4_0"),
    ],
)
def test_codes_that_fit_a_block_are_carried_over(scheme: Scheme, wanted: str, type: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "source", scheme)
    made = gguf(source, tmp_path / "model.gguf", wanted, exact=True)
    assert (made.exact, made.verified) == (True, True)
    assert made.sha256 == hash_of(source) == hash_of(tmp_path / "model.gguf")
    assert {type, "BF16", "F32"} <= made.types().keys()


def test_a_block_type_is_not_rounded_into_a_larger_one(tmp_path: Path) -> None:
    gguf(DEMO, tmp_path / "small.gguf", "Q4_0")
    made = gguf(tmp_path / "small.gguf", tmp_path / "large.gguf", "Q8_0")
    assert made.exact
    assert made.verified
    assert made.types().keys() == {"Q4_0", "Q6_K", "F32"}
    assert made.target_bytes == made.source_bytes


def test_exact_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    source = quantised(tmp_path / "source", Scheme("int4", "group", 32, symmetric=False, scale_dtype="fp32"))
    with pytest.raises(UnsupportedError, match=r"weight \(.*\) would lose something; nothing was written") as error:
        gguf(source, tmp_path / "model.gguf", "Q4_0", exact=True)
    assert "Q4_0: codes reach from" in str(error.value)
    with pytest.raises(UnsupportedError, match=r"embed_tokens.weight \(bf16\) would lose something"):
        gguf(DEMO, tmp_path / "model.gguf", "Q4_0", exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_exists_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists and will not be overwritten"):
        gguf(DEMO, target, "Q8_0")
    assert target.read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match="the original itself"):
        with Checkpoint.open(DEMO) as checkpoint:
            to_directory(checkpoint, DEMO, parse_target("dense"), {})


def test_an_interrupted_conversion_resumes(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []

    def stop_at(name: str, done: int, total: int) -> None:
        seen.append(name)
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        gguf(DEMO, tmp_path / "model.gguf", "Q4_K", progress=stop_at)
    assert [path.name for path in tmp_path.iterdir()] == [".model.gguf.linnet-partial"]
    journal = tmp_path / ".model.gguf.linnet-partial" / "journal.jsonl"
    assert journal.read_text().count("\n") == 21
    with pytest.raises(ConfigError, match="the unfinished output of another run"):
        gguf(DEMO, tmp_path / "model.gguf", "Q8_0")
    made = gguf(DEMO, tmp_path / "model.gguf", "Q4_K")
    whole = gguf(DEMO, tmp_path / "other.gguf", "Q4_K")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["model.gguf", "other.gguf"]
    assert made.tensors == whole.tensors
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_a_full_disk_is_told_and_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(
            CheckpointError, match=r"the file needs \d+ bytes beside what is already written, the disk has 1000"
        ):
            gguf(DEMO, tmp_path / "model.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == [".model.gguf.linnet-partial"]
    begun: list[str] = []
    gguf(DEMO, tmp_path / "model.gguf", "Q8_0", announce=lambda made: begun.append(made.path.name))
    assert [path.name for path in tmp_path.iterdir()] == begun == ["model.gguf"]


def test_importance_moves_the_error_away_from_what_matters(tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    importance = np.exp(np.random.default_rng(0).normal(0, 2, 256)).astype(np.float32)
    tensors = {"blk.0.attn_q.weight.in_sum2": importance[None] * 10, "blk.0.attn_q.weight.counts": np.array([[10.0]])}
    with matrix.open("wb") as file:
        planned = [PlannedTensor(name, NAMED_TYPES["F32"], value.shape) for name, value in tensors.items()]
        writer = GgufWriter(file, {"general.type": "imatrix"}, planned)
        for name, value in tensors.items():
            writer.write(name, [value.astype(np.float32)])
    with Checkpoint.open(DEMO) as source:
        of, digest = read_importance(matrix, architecture_for(source.config, "config.json"))
        assert np.allclose(of("model.layers.0.self_attn.q_proj"), importance)
        assert of("model.layers.1.self_attn.q_proj") is None
        original = source.tensor("model.layers.0.self_attn.q_proj.weight").astype(np.float32)
    gguf(DEMO, tmp_path / "plain.gguf", "Q4_K")
    gguf(DEMO, tmp_path / "weighed.gguf", "Q4_K", importance=of, identity=digest)
    errors = {}
    for name in ("plain", "weighed"):
        with Checkpoint.open(tmp_path / f"{name}.gguf") as made:
            weight = made.linear("model.layers.0.self_attn.q_proj")
            assert isinstance(weight, PackedWeight)
            errors[name] = (importance * (weight.dequantize() - original) ** 2).sum()
    assert errors["weighed"] < 0.8 * errors["plain"]
    with pytest.raises(CheckpointError, match="no importance matrix"):
        read_importance(tmp_path / "plain.gguf", architecture_for({"model_type": "llama"}, ""))


def test_dense_directories(tmp_path: Path) -> None:
    gguf(DEMO, tmp_path / "model.gguf", "Q4_K")
    with Checkpoint.open(tmp_path / "model.gguf") as checkpoint:
        files = {"tokenizer.json": "{}"}
        exact = to_directory(checkpoint, tmp_path / "f32", parse_target("dense:F32"), files, exact=True)
        rounded = to_directory(checkpoint, tmp_path / "bf16", parse_target("dense"), files)
        with pytest.raises(UnsupportedError, match="would lose something"):
            to_directory(checkpoint, tmp_path / "no", parse_target("dense"), files, exact=True)
    assert exact.verified
    assert exact.sha256 == hash_of(tmp_path / "model.gguf") == hash_of(tmp_path / "f32")
    assert 0 < rounded.relative_error < 0.003
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "bf16" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "no").exists()


def test_compressed_tensors_keep_the_codes_they_have_words_for(tmp_path: Path) -> None:
    source = quantised(tmp_path / "source", Scheme("int4", "group", 32, scale_dtype="fp16"))
    gguf(source, tmp_path / "model.gguf", "Q4_0", exact=True)
    with Checkpoint.open(tmp_path / "model.gguf") as checkpoint:
        made = to_directory(checkpoint, tmp_path / "again", parse_target("compressed-tensors"), {}, exact=True)
    assert made.verified
    assert made.sha256 == hash_of(source)
    with Checkpoint.open(source) as one, Checkpoint.open(tmp_path / "again") as other:
        assert one.scheme_of("model.layers.0.mlp.up_proj") == other.scheme_of("model.layers.0.mlp.up_proj")
        packed = "model.layers.0.mlp.up_proj.weight_packed"
        assert np.array_equal(one.tensor(packed), other.tensor(packed))
    gguf(DEMO, tmp_path / "k.gguf", "Q4_K")
    with Checkpoint.open(tmp_path / "k.gguf") as checkpoint:
        with pytest.raises(UnsupportedError, match="compressed-tensors has no word for its numbers"):
            to_directory(checkpoint, tmp_path / "k", parse_target("compressed-tensors"), {}, exact=True)
        lossy = to_directory(checkpoint, tmp_path / "k", parse_target("compressed-tensors"), {})
    assert 0.01 < lossy.relative_error < 0.1
