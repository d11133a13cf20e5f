# SPDX-License-Identifier: Apache-2.0
"""What smoothing and rotating are for: planted outliers cost much without them, little with them."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import error, rewritten, with_loud_columns, with_loud_stream
from safetensors.numpy import load_file, save_file
from walking import StopAt, hashes

from linnet.compress import CancelToken, Interrupted, ProgressEvent, check, compress, make_recipe, recipe_from
from linnet.compress.block import Block
from linnet.compress.folds import folds_of
from linnet.compress.statistic import ColumnMagnitude, RowSample
from linnet.compress.transforms.awq import AwqScales, AwqScalesOptions
from linnet.compress.transforms.hadamard import hadamard, rotation
from linnet.compress.transforms.quarot import Quarot, QuarotOptions
from linnet.compress.transforms.smoothquant import SmoothQuant, SmoothQuantOptions
from linnet.compress.transforms.values import values_of
from linnet.errors import ConfigError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.presets import parse_scheme

ROWS = {"calibration_rows": 6, "calibration_length": 64, "chunk_tokens": 128}


@pytest.fixture(scope="module")
def loud(fp32_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function as ``fp32_model``, one column of every normed value 60 times as loud."""
    model = with_loud_columns(fp32_model, tmp_path_factory.mktemp("loud") / "model", 60)
    assert error(model, fp32_model) < 1e-10
    return model


def cost(model: Path, target: Path, text: str, scheme: str, algorithm: str, **fields) -> float:
    result = compress(model, target, make_recipe(scheme, algorithm, **ROWS, **fields), calibration_text=text)
    return error(result.path, model)


@pytest.mark.parametrize(
    ("transform", "scheme"),
    [(SmoothQuant(SmoothQuantOptions()), "W8A8"), (AwqScales(AwqScalesOptions()), "W4A16-g16")],
)
def test_smoothing_leaves_the_function_alone(loud: Path, transform, scheme: str):
    source, changed = load_model(loud), dict[str, torch.Tensor]()
    schemes = {info.module: parse_scheme(scheme).linear for info in source.linears() if info.kind == "linear"}
    generator, alphas = torch.Generator().manual_seed(1), list[float]()
    for index, folds in folds_of(source.program, source.linears()).items():
        block = Block(source.program.segments[index], source, schemes)
        for fold in folds:
            statistics = {name: kind(fold.shape[1]) for name, kind in transform.statistics.items()}
            loudness = torch.ones(fold.shape[1])
            loudness[3] = 60
            for statistic in statistics.values():
                statistic.add(torch.randn(300, fold.shape[1], generator=generator) * loudness)
            notes = transform.apply(block, fold, schemes, statistics)
            alphas += [notes["alpha"]]
            assert notes["error"] <= notes["error_before"]
        changed |= {name: block.dense(name) for name in block.names}
    assert any(alphas)
    assert error(rewritten(source, changed), source) ** 0.5 < 1e-5


def test_smoothquant_restores_what_plain_w8a8_loses(loud, fp32_model, tmp_path, text):
    plain = cost(loud, tmp_path / "plain", text, "W8A8", "rtn")
    quiet = cost(fp32_model, tmp_path / "quiet", text, "W8A8", "rtn")
    smooth = cost(loud, tmp_path / "smooth", text, "W8A8", "smoothquant")
    assert plain > 10 * quiet
    assert smooth < 2 * quiet


def test_the_best_alpha_lies_inside(fp32_model, tmp_path, text):
    """Weights that are loud where activations are quiet: neither may take all of the other's range."""
    model = with_loud_columns(fp32_model, tmp_path / "model", 100, quieter=10)
    result = compress(model, tmp_path / "out", make_recipe("W8A8", "smoothquant", **ROWS), calibration_text=text)
    notes = result.layers["model.layers.0.self_attn.q_proj"]["smoothquant"]
    assert 0.2 < notes["alpha"] < 0.8
    assert notes["error"] < 0.5 * notes["error_before"]
    ends = [cost(model, tmp_path / f"a{a}", text, "W8A8", "smoothquant", options={"alpha": a}) for a in (0.0, 1.0)]
    assert error(result.path, model) < 0.8 * min(ends)
    assert "smoothquant + rtn" in (result.path / "README.md").read_text()


def test_awq_beats_rounding_and_moves_no_column(loud, tmp_path, text):
    rounded = cost(loud, tmp_path / "rtn", text, "W4A16-g16", "rtn")
    result = compress(loud, tmp_path / "awq", make_recipe("W4A16-g16", "awq", **ROWS), calibration_text=text)
    assert error(result.path, loud) < 0.5 * rounded
    unclipped = make_recipe("W4A16-g16", "awq", options={"clip": False}, **ROWS)
    without = compress(loud, tmp_path / "open", unclipped, calibration_text=text)
    assert error(without.path, loud) < 0.5 * rounded
    first = [name for name in result.layers if ".0.self_attn." in name and "o_proj" not in name]
    clipped, whole = (sum(each.layers[name]["output_error"] for name in first) for each in (result, without))
    assert clipped < 0.95 * whole
    with Checkpoint.open(result.path) as checkpoint:
        assert not [name for name in checkpoint.names() if "order" in name or "g_idx" in name]
        stored = checkpoint.linear("model.layers.0.mlp.down_proj")
        assert isinstance(stored, PackedWeight)
        assert not stored.scheme.sorted_columns


def test_a_rotation_leaves_the_function_alone_and_is_drawn_by_the_seed(tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    for family in ("llama-2-biases", "qwen3", "phi-3", "llama-3-tied"):
        directory = tmp_path / family
        tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), directory)
        source = load_model(directory)
        untied = replace(Quarot(QuarotOptions()).prepare(source), checkpoint=source.checkpoint)
        rotated = Quarot(QuarotOptions()).apply(untied, {}, 0)
        assert error(rotated, source) ** 0.5 < 1e-5
        other = Quarot(QuarotOptions()).apply(untied, {}, 1)
        name = source.linears()[0].tensor
        assert not np.allclose(rotated.checkpoint.tensor(name), other.checkpoint.tensor(name), atol=0.01)


@pytest.mark.parametrize("family", ["llama-2-biases", "qwen3", "phi-3", "llama-3-tied"])
def test_values_are_rotated_head_by_head_and_the_function_stays(tmp_path, family):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), tmp_path)
    source = load_model(tmp_path)
    untied = replace(Quarot(QuarotOptions()).prepare(source), checkpoint=source.checkpoint)
    plain, rotated = (Quarot(QuarotOptions(values=values)).apply(untied, {}, 0) for values in (False, True))
    assert error(rotated, source) ** 0.5 < 1e-5
    values = values_of(source.program)
    assert len(values.readers) == len(source.spec.layers)
    changed = {
        name
        for name in source.checkpoint.names()
        if not np.array_equal(plain.checkpoint.tensor(name), rotated.checkpoint.tensor(name))
    }
    assert changed == {*values.makers, *values.readers}
    for name, (rows, _) in values.makers.items():  # queries and keys of a fused tensor stay as they are
        first = 0 if rows is None else rows[0][0]
        before, after = (model.checkpoint.tensor(name)[:first] for model in (plain, rotated))
        assert np.array_equal(before, after)


def test_a_loud_channel_of_the_values_becomes_roundable(fp32_model, tmp_path, text):
    """One channel of every head 60 times as loud, its reader's columns as much quieter: the same function."""
    model = shutil.copytree(fp32_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    for layer in range(2):
        value, out = (tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "vo")
        size = value.shape[0] // 2  # of 2 KV heads
        value[::size] *= 60
        out[:, ::size] /= 60
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert error(model, fp32_model) ** 0.5 < 1e-5
    costs = {}
    for values in (False, True):
        steps = [
            {"step": "rotate", "algorithm": "quarot", "options": {"values": values}},
            {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"},
        ]
        result = compress(model, tmp_path / f"{values}", recipe_from({"steps": steps, **ROWS}), calibration_text=text)
        costs[values] = error(result.path, model)
    assert costs[True] < 0.7 * costs[False]  # heads of 8 channels: what is loud in one is still loud in eight


def test_a_rotation_makes_a_loud_stream_roundable(fp32_model, tmp_path, text):
    model = with_loud_stream(fp32_model, tmp_path / "model", 60)
    for scheme, at_most in (("W8A8", 0.4), ("W4A8-g16", 0.8)):  # at four bits most of what is lost is the weights' part
        plain, rotated = (
            cost(model, tmp_path / f"{scheme}{a}", text, scheme, a, options={"act_order": False})
            for a in ("gptq", "quarot")
        )
        assert rotated < at_most * plain
    steps = [
        {"step": "rotate", "algorithm": "quarot"},
        {"step": "smooth", "algorithm": "smoothquant"},
        {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"},
    ]
    chained = compress(model, tmp_path / "chain", recipe_from({"steps": steps, **ROWS}), calibration_text=text)
    assert error(chained.path, model) < cost(model, tmp_path / "w8a8", text, "W8A8", "rtn")


def test_a_rotated_model_has_a_head_of_its_own(tiny_model, tmp_path, text, caplog):
    model = shutil.copytree(tiny_model, tmp_path / "tied")
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    result = compress(model, tmp_path / "out", make_recipe("W8A16", "quarot", **ROWS), calibration_text=text)
    assert "lm_head is tied to model.embed_tokens; the result gets a head of its own (0 MiB more)" in caplog.text
    with Checkpoint.open(model) as original, Checkpoint.open(result.path, verify=True) as checkpoint:
        assert result.source_bytes == original.nbytes
        assert result.output_bytes == checkpoint.nbytes
        assert checkpoint.config["tie_word_embeddings"] is False
        assert "lm_head.weight" in checkpoint
    plain = cost(model, tmp_path / "plain", text, "W8A16", "gptq")
    assert error(result.path, model) < 2 * plain


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma-2", "only a linear's output can be rotated"),
        ("gpt-neox", "is no plain RMS norm"),
    ],
)
def test_what_cannot_be_rotated_is_said_before_reading(family, reason, tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), tmp_path)
    with pytest.raises(UnsupportedError, match=reason):
        check(tmp_path, make_recipe("W4A16", "quarot"))


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 48, 64, 144, 576])
def test_hadamard_matrices(order: int):
    matrix = hadamard(order)
    assert matrix is not None
    assert (np.abs(matrix) == 1).all()
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


def test_an_unknown_order_is_named():
    assert hadamard(6) is None
    with pytest.raises(UnsupportedError, match="the hidden size is 92"):
        rotation(92, 0, "the hidden size")


def test_rules_decide_options_module_by_module(fp32_model, tmp_path, text):
    smooth = {"step": "smooth", "algorithm": "smoothquant", "options": {"alpha": 0.5}}
    rules = [{"match": "re:.*mlp.(gate|up)_proj", "options": {"alpha": 0.25}}]
    quantise = {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"}
    recipe = recipe_from({"steps": [{**smooth, "rules": rules}, quantise], **ROWS})
    layers = compress(fp32_model, tmp_path / "out", recipe, calibration_text=text).layers
    assert layers["model.layers.1.mlp.up_proj"]["smoothquant"]["alpha"] == 0.25
    assert layers["model.layers.1.self_attn.v_proj"]["smoothquant"]["alpha"] == 0.5
    for wrong, message in (
        ("re:.*mlp.up_proj", "gate_proj and .*up_proj read the same value .* both or neither"),
        ("re:nothing", "the rule 're:nothing' of smoothquant matches no module that is compressed; there are: model"),
    ):
        rules[0]["match"] = wrong
        with pytest.raises(ConfigError, match=message):
            check(fp32_model, recipe_from({"steps": [{**smooth, "rules": rules}, quantise], **ROWS}), text)


CHAIN = recipe_from(
    {
        "steps": [
            {"step": "rotate", "algorithm": "quarot"},
            {"step": "smooth", "algorithm": "smoothquant"},
            {"step": "smooth", "algorithm": "awq", "options": {"grid": 3}},
            {"step": "quantise", "algorithm": "gptq", "scheme": "W4A8-g16"},
        ],
        **ROWS,
    }
)


def test_a_chain_resumes_to_the_same_bytes_and_its_work_adds_up(tiny_model, tmp_path, text):
    events: list[ProgressEvent] = []
    whole = compress(tiny_model, tmp_path / "whole", CHAIN, calibration_text=text, observer=events.append)
    assert events[-1].done == pytest.approx(events[-1].total)
    assert (
        len({notes["alpha"] for layer in whole.layers.values() for notes in (layer["smoothquant"], layer["awq"])}) > 3
    )
    target, stops = tmp_path / "out", 0
    while not target.exists():
        token = CancelToken()
        with suppress(Interrupted):
            stop = StopAt(token, len(events) // 2 + 5)
            compress(tiny_model, target, CHAIN, calibration_text=text, cancel=token, observer=stop)
        stops += 1
        assert stops < 12
    assert stops >= 2
    assert hashes(target) == hashes(whole.path)


def test_what_cannot_be_smoothed_is_said(fp32_model, text):
    dense = [{"match": "re:model.layers", "scheme": "dense"}]
    with pytest.raises(ConfigError, match="smoothquant finds nothing to smooth: no linear that is compressed reads"):
        check(fp32_model, make_recipe("W8A8-head8", "smoothquant", rules=dense, **ROWS), text)


def test_the_prediction_knows_what_the_steps_need(fp32_model, text):
    recipes = (make_recipe("W8A8", algorithm, **ROWS) for algorithm in ("rtn", "smoothquant"))
    plain, smooth = (check(fp32_model, recipe, text).prediction for recipe in recipes)
    assert plain.statistics == 0
    assert smooth.statistics == (3 * 32 + 64) * (12 + 4 * 512)  # peaks and means, at most 511 rows
    assert smooth.fit > plain.fit


def test_options_of_smoothing_are_checked():
    for options, message in (
        ({"alpha": 1.5}, "alpha of smoothquant is 1.5; accepted is 0 to 1, or search"),
        ({"beta": 1}, "options of algorithm smoothquant: there is no key 'beta'; known keys: alpha, scales"),
    ):
        with pytest.raises(ConfigError, match=message):
            check("/nowhere", make_recipe("W8A8", "smoothquant", options=options))
    with pytest.raises(ConfigError, match="grid of awq is 0"):
        check("/nowhere", make_recipe("W4A16", "awq", options={"grid": 0}))


def test_samples_and_magnitudes_do_not_depend_on_the_chunks():
    x = torch.randn(1700, 6, generator=torch.Generator().manual_seed(0))
    whole, parts, magnitude = RowSample(6), RowSample(6), ColumnMagnitude(6)
    whole.add(x)
    for part in x.split(123):
        parts.add(part)
        magnitude.add(part)
    assert 256 <= len(whole.values) < 512
    assert torch.equal(parts.values, x[::4])
    assert torch.equal(whole.values, x[::4])
    assert torch.equal(magnitude.greatest, x.abs().amax(dim=0))
    assert torch.allclose(magnitude.mean, x.abs().mean(dim=0))
    halves = [RowSample(6), RowSample(6)]
    halves[0].add(x[:100])
    halves[1].add(x[100:])
    halves[0].merge(halves[1])
    assert halves[0].rows == 1700
    assert 256 <= len(halves[0].values) < 512
