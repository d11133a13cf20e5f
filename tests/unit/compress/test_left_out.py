# SPDX-License-Identifier: Apache-2.0
"""Calibration rows that are not counted, and the error that a block's compression makes on those that are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from walking import FEW, StopAt, hashes, value_of

from linnet.compress import CancelToken, Interrupted, check, compress, make_recipe
from linnet.errors import CheckpointError, ConfigError
from linnet.text import OwnDocument, OwnText

RECIPE = make_recipe("W4A16-g16", **FEW)


def of_ids(rows: list[list[int]]) -> Callable[..., OwnText]:
    return lambda *_: OwnText(tuple(OwnDocument(tuple(ids), 1) for ids in rows), len(rows[0]), 0, False, 0)


def test_rows_that_say_nothing_are_left_out_and_counted(tiny_model, tmp_path, caplog):
    good = [[3 + (7 * row + place) % 200 for place in range(32)] for row in range(4)]
    recipe = make_recipe("W4A16-g16", calibration_rows=6, calibration_length=32)
    same = compress(
        tiny_model, tmp_path / "a", recipe, write_text=of_ids([good[0], [9] * 32, *good[1:], [1] + [4] * 31])
    )
    assert same.manifest["record"]["calibration"]["left_out"] == 2
    assert same.manifest["record"]["calibration"]["rows"] == 4
    assert "2 of 6 calibration rows are one token over and over, and are left out" in caplog.text
    clean = compress(tiny_model, tmp_path / "b", recipe, write_text=of_ids(good))
    assert hashes(same.path) == hashes(clean.path)
    assert clean.manifest["record"]["calibration"]["left_out"] == 0
    with pytest.raises(ConfigError, match=r"every row of .* is one token over and over"):
        compress(tiny_model, tmp_path / "c", recipe, write_text=of_ids([[5] * 32, [6] * 32]))


def overflowing_at(token: int, model: Path) -> Path:
    """Every weight is finite, but the first norm makes too much of column 5, which only this token has."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 5] = 0
    tensors["model.embed_tokens.weight"][token, 5] = 100
    tensors["model.layers.0.input_layernorm.weight"][5] = 1e38
    save_file(tensors, model / "model.safetensors")
    return model


def test_rows_with_not_a_number_in_them_are_left_out_and_counted(tiny_model, tmp_path):
    """One token overflows: rows with it tell nothing, the others what they tell alone, resumed or not."""
    model = overflowing_at(77, shutil.copytree(tiny_model, tmp_path / "sick"))
    good = [[80 + (7 * row + place) % 100 for place in range(32)] for row in range(4)]
    sick = [*good[:2], [*good[0][:20], 77, *good[0][:11]], *good[2:]]
    recipe = make_recipe("W4A16-g16", calibration_rows=4, calibration_length=32, chunk_tokens=32)
    clean = compress(model, tmp_path / "clean", recipe, write_text=of_ids(good))
    result = compress(model, tmp_path / "sick-rows", recipe, write_text=of_ids(sick))
    assert result.manifest["record"]["calibration"]["left_out"] == 1
    assert hashes(result.path) == hashes(clean.path)
    token, target = CancelToken(), tmp_path / "resumed"
    stop = StopAt(token, 45)
    with pytest.raises(Interrupted):
        compress(model, target, recipe, write_text=of_ids(sick), cancel=token, observer=stop)
    resumed = compress(model, target, recipe, write_text=of_ids(sick))
    assert resumed.resumed
    assert resumed.manifest["record"]["calibration"]["left_out"] == 1
    assert hashes(resumed.path) == hashes(clean.path)
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.[qkv]_proj reads hold NaN or infinity on every one"):
        compress(model, tmp_path / "none", recipe, write_text=of_ids(sick[2:3]))


def test_the_error_of_each_block_is_recorded(tiny_model, tmp_path, text):
    """Of the compressed block against the dense one, on what the compressed blocks before it produce."""
    result = compress(tiny_model, tmp_path / "out", RECIPE, calibration_text=text)
    blocks = result.manifest["record"]["blocks"]
    assert list(blocks) == ["layers.0", "layers.1"]
    ids = check(tiny_model, RECIPE, text).rows.token_ids[:6]
    dense, small = (value_of(path, "layers.0.mlp.residual", ids) for path in (tiny_model, result.path))
    expected = float((small - dense).square().sum() / dense.square().sum())
    assert blocks["layers.0"]["output_error"] == pytest.approx(expected, rel=1e-4)
    rounded = compress(tiny_model, tmp_path / "w8a8", make_recipe("W8A8", **FEW), calibration_text=text)
    unrounded = compress(tiny_model, tmp_path / "w8", make_recipe("W8A16", **FEW), calibration_text=text)
    with_, without = (r.manifest["record"]["blocks"]["layers.1"]["output_error"] for r in (rounded, unrounded))
    assert with_ > 1.2 * without  # what rounding the activations costs is in it
    assert compress(tiny_model, tmp_path / "rtn", make_recipe("W4A16-g16", "rtn")).manifest["record"]["blocks"] == {}
