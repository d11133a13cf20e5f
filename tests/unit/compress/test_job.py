# SPDX-License-Identifier: Apache-2.0
"""Everything that can fail is refused before a weight is read, in a sentence that says what would be accepted."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import linnet
from linnet import demo
from linnet.compress import check, compress, make_recipe
from linnet.compress.calibration import BUNDLED_NAME
from linnet.compress.disk import check_disk, disk_need, output_bytes
from linnet.compress.job import sources_digest
from linnet.compress.resolve import resolve_schemes
from linnet.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.text import OwnDocument, OwnText


@pytest.fixture
def no_weights_read(monkeypatch: pytest.MonkeyPatch):
    """Fail the test if a tensor is read."""

    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)


def changed(model: Path, target: Path, **config) -> Path:
    shutil.copytree(model, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"scheme": "W5A16"}, ConfigError, "schemes: W8A16, W4A16"),
        ({"scheme": "W4A16-g16", "algorithm": "magic"}, ConfigError, "accepted: rtn, gptq"),
        ({"scheme": "W4A16-g16", "options": {"bits": 4}}, ConfigError, "known keys: damping"),
        (
            {"scheme": "W4A16-g128"},
            ConfigError,
            "128 does not divide its 32 columns; group sizes that fit: 16, 32; give -g32 or --group-size auto",
        ),
        ({"scheme": "W4A16", "group_size": 24}, ConfigError, "group size 24 does not divide"),
        (
            {"scheme": "W4A16-g16", "rules": [{"match": "re:nothing", "scheme": "dense"}]},
            ConfigError,
            "matches no linear",
        ),
        ({"scheme": "W4A16-g16", "rules": [{"match": "re:.*", "scheme": "dense"}]}, ConfigError, "matches|compressed"),
        ({"scheme": "W4A16-g16", "calibration_rows": 10**6}, ConfigError, "tokens; 1000000 rows"),
        (
            {"scheme": "W4A16-g16", "calibration_length": 512},
            ConfigError,
            "512; this model reaches 256",
        ),
        ({"scheme": "W4A16-g16", "calibration_length": 1}, ConfigError, "length is 1; accepted is 2 or more"),
        ({"scheme": "W4A16-g16", "calibration": "/nowhere.txt"}, ConfigError, "cannot be read"),
    ],
)
def test_refusals_before_reading(tiny_model, text, fields, error, message):
    with pytest.raises(error, match=message):
        check(tiny_model, make_recipe(**{"calibration_rows": 4, **fields}), text)


@pytest.mark.usefixtures("no_weights_read")
def test_what_passes(tiny_model, text):
    job = check(tiny_model, make_recipe("W4A16-g16", calibration_rows=4), text)
    assert len(job.schemes) == 14
    assert job.rows is not None
    assert job.rows.token_ids.shape == (4, 256)
    assert job.last_tapped_segment() == 2
    data_free = check(tiny_model, make_recipe("W4A16-g16", "rtn"))
    assert data_free.rows is None
    assert data_free.last_tapped_segment() == -1


@pytest.mark.usefixtures("no_weights_read")
def test_the_ceiling_names_the_parts(tiny_model, text):
    recipe = make_recipe("W4A16-g16", calibration_rows=4)
    with pytest.raises(CapacityError, match=r"predicted to need .* MiB \(base .*activations .*above the ceiling of 64"):
        check(tiny_model, recipe, text, memory_ceiling_bytes=64 << 20)
    check(tiny_model, recipe, text, memory_ceiling_bytes=8 << 30)


def test_a_group_that_the_name_does_not_say_is_a_wish(tiny_model, caplog):
    model = load_model(tiny_model)
    default = resolve_schemes(model, make_recipe("W4A16"))
    assert default == resolve_schemes(model, make_recipe("W4A16", group_size="auto"))
    told = caplog.messages[0]
    assert told.startswith("W4A16: groups of 32 instead of groups of 128 in 12 of 14 modules with 32 columns (")
    assert "; groups of 64 instead of groups of 128 in 2 of 14 modules with 64 columns (" in told
    caplog.clear()
    assert {scheme.weight.group_size for scheme in resolve_schemes(model, make_recipe("W3A16")).values()} == {32}
    assert not caplog.messages  # the scheme's own fits everywhere
    with pytest.raises(ConfigError, match="lm_head: group size 64 does not divide"):
        resolve_schemes(model, make_recipe("W4A16-g64-head4", rules=[{"match": "re:model.layers", "scheme": "W8A16"}]))
    ruled = make_recipe("W4A16-g16", rules=[{"match": "re:.*down_proj", "scheme": "NF4"}])
    assert resolve_schemes(model, ruled)["model.layers.0.mlp.down_proj"].weight.group_size == 64
    with pytest.raises(ConfigError, match="down_proj: group size 128 does not divide its 64 columns"):
        resolve_schemes(model, make_recipe("W4A16", rules=[{"match": "re:.*down_proj", "scheme": "W4A16-g128"}]))


def test_groups_rules_and_heads(tiny_model):
    model = load_model(tiny_model)
    auto = resolve_schemes(model, make_recipe("W4A16", group_size="auto"))
    assert {scheme.weight.group_size for scheme in auto.values()} == {32, 64}
    given = resolve_schemes(model, make_recipe("W8A16", group_size=16))
    assert {scheme.weight.group_size for scheme in given.values()} == {16}
    ruled = resolve_schemes(
        model,
        make_recipe(
            "W4A16-g32-head8",
            rules=[{"match": "re:.*down_proj", "scheme": "W8A16"}, {"match": "lm_head", "scheme": "dense"}],
        ),
    )
    assert ruled["model.layers.0.mlp.down_proj"].weight.element == "int8"
    assert ruled["model.embed_tokens"].weight.element == "int8"
    assert "lm_head" not in ruled


def test_unknown_families_and_compressed_sources(tiny_model, tmp_path, text):
    strange = changed(tiny_model, tmp_path / "strange", model_type="mamba9", architectures=["Mamba9ForCausalLM"])
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM"):
        check(strange, make_recipe("W4A16-g16", "rtn"))
    with pytest.raises(CheckpointError, match="nowhere"):
        check("/nowhere/at/all", make_recipe("W4A16-g16", "rtn"))
    small = changed(tiny_model, tmp_path / "small", vocab_size=20)
    tensors = load_file(small / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:20].copy()
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(CheckpointError, match="the embedding has 20 rows"):
        check(small, make_recipe("W4A16-g16", calibration_rows=2), text)


def test_code_that_decides_the_bytes_is_named_by_its_digest(tmp_path, monkeypatch):
    package = tmp_path / "linnet"
    for room in ("compress", "text", "cli"):
        (package / room).mkdir(parents=True)
        (package / room / "a.py").write_text("one = 1")

    def digest() -> str:
        sources_digest.cache_clear()
        return sources_digest()

    with monkeypatch.context() as patch:
        patch.setattr(linnet, "__file__", str(package / "__init__.py"))
        before = digest()
        (package / "cli" / "a.py").write_text("one = 2")
        assert digest() == before
        (package / "compress" / "a.py").write_text("one = 2")
        assert digest() != before
    sources_digest.cache_clear()


def test_a_full_disk_is_foreseen(tiny_model, tmp_path, monkeypatch):
    job = check(tiny_model, make_recipe("W4A16-g16", "rtn"))
    check_disk(job, tmp_path / "deep" / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CapacityError, match=r"needs .* MiB on disk"):
        check_disk(job, tmp_path / "out")
    need = disk_need(job)
    assert need.output == output_bytes(job)
    assert (need.rows, need.total) == (0, need.output + need.piece)
    assert need.piece < need.output / 2  # a part of it, not all of it, is there twice
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, need.output))
    (tmp_path / ".out.linnet-partial").mkdir()
    (tmp_path / ".out.linnet-partial" / "piece").write_bytes(b"x" * need.piece)
    check_disk(job, tmp_path / "out")  # what an unfinished run has written is not asked for again


def own_rows(rows: int, length: int) -> OwnText:
    return OwnText(tuple(OwnDocument((1, 2) * (length // 2), 1) for _ in range(rows)), length, 5, False, 0)


def test_without_a_text_the_model_is_asked_to_write(tiny_model: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def write(directory: Path, rows: int, length: int, seed: int) -> OwnText:
        asked.append((directory, rows, length, seed))
        return own_rows(rows, length)

    recipe = make_recipe("W4A16-g16", calibration_rows=3, calibration_length=16, seed=5)
    job = check(tiny_model, recipe, write_text=write)
    assert job.rows is not None
    assert asked == [(tiny_model, 3, 16, 5)]
    assert job.rows.token_ids.shape == (3, 16)
    assert job.rows.name == "the model's own text (no chats, seed 5)"
    # It is the last that is asked, and never without need.
    with pytest.raises(CapacityError, match="above the ceiling"):
        check(tiny_model, recipe, memory_ceiling_bytes=1000, write_text=write)
    assert check(tiny_model, make_recipe("W4A16-g16", "rtn"), write_text=write).rows is None
    check(tiny_model, recipe, "the cat in the hat. " * 100, write_text=write)
    assert len(asked) == 1
    with pytest.raises(ConfigError, match="gptq needs a calibration text and none is given"):
        check(tiny_model, recipe)


def test_nothing_is_written_for_a_target_that_cannot_be(tiny_model: Path, tmp_path: Path) -> None:
    def write(directory: Path, rows: int, length: int, seed: int) -> OwnText:
        raise AssertionError("the model was asked to write")

    (tmp_path / "file").write_text("")
    recipe = make_recipe("W4A16-g16", calibration_rows=3, calibration_length=16)
    with pytest.raises(ConfigError, match="is not a directory"):
        compress(tiny_model, tmp_path / "file" / "out", recipe, write_text=write)
    compress(tiny_model, tmp_path / "out", make_recipe("W4A16-g16", "rtn"))
    with pytest.raises(CheckpointError, match="overwrit"):
        compress(tiny_model, tmp_path / "out", recipe, write_text=write)


def test_the_town_is_the_bundled_models_alone(tmp_path: Path) -> None:
    """It is known by its content: a copy elsewhere is the same model, a changed weight another one."""
    recipe = make_recipe("W4A16-g32", calibration_rows=2, calibration_length=32)
    copy = shutil.copytree(demo.model_directory(), tmp_path / "copy")
    job = check(copy, recipe)
    assert job.rows is not None
    assert job.rows.name == BUNDLED_NAME
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ConfigError, match="none is given"):
        check(copy, recipe)


def test_the_bundled_model_is_known_by_its_digest(tmp_path: Path) -> None:
    with Checkpoint.open(demo.model_directory()) as checkpoint:
        assert checkpoint.digest() == demo.MODEL_DIGEST
        assert demo.is_bundled_model(checkpoint)
    compressed = compress(demo.model_directory(), tmp_path / "small", make_recipe("W8A16", "rtn")).path
    with Checkpoint.open(compressed) as checkpoint:
        assert demo.is_bundled_model(checkpoint)
