# SPDX-License-Identifier: Apache-2.0
"""What is rounded at run time: activations of 4 bits, and scales that calibration finds."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import LOUD, error, logits, with_loud_columns
from safetensors.numpy import load_file, save_file

from linnet import demo
from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.ops import dequantise, quantise
from linnet.backends.reference.weights import WeightTable
from linnet.compress import check, compress, recipe_from
from linnet.compress.algorithms.static import Static, StaticOptions
from linnet.compress.magnitudes import Magnitudes
from linnet.errors import ConfigError
from linnet.formats import Checkpoint
from linnet.models.at_load import quantised_at_load
from linnet.models.load import load_model
from linnet.program.choose_numerics import choose_numerics
from linnet.schemes import Scheme
from linnet.text import Tokenizer

ROWS = {"calibration_rows": 6, "calibration_length": 64, "chunk_tokens": 128}
ROTATE = {"step": "rotate", "algorithm": "quarot"}
SMOOTH = {"step": "smooth", "algorithm": "smoothquant"}


def cost(model: Path, target: Path, text: str, scheme: str, *before: dict, algorithm: str = "rtn") -> float:
    steps = [*before, {"step": "quantise", "algorithm": algorithm, "scheme": scheme}]
    return error(compress(model, target, recipe_from({"steps": steps, **ROWS}), calibration_text=text).path, model)


@pytest.fixture(scope="module")
def loud_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, the same function, with one column of every normed value 64 times as loud."""
    model = tmp_path_factory.mktemp("town") / "model"
    shutil.copytree(demo.model_directory(), model)
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    for name, values in tensors.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            values[LOUD] *= 64
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            values[:, LOUD] /= 64
    save_file(tensors, file, metadata={"format": "pt"})
    for manifest in model.glob("linnet_manifest.json"):
        manifest.unlink()
    return model


def divergence(candidate: Path, reference: Path) -> float:
    """Mean KL in nats per token, on held-out documents of the bundled model's town."""
    documents = demo.heldout_file().read_text(encoding="utf-8").split(demo.TEXT_SEPARATOR)
    tokenizer = Tokenizer.open(reference)
    rows = [ids[:48] for ids in map(tokenizer.encode, documents) if len(ids) >= 48][:16]
    expected, found = (
        torch.log_softmax(logits(each, np.array(rows, np.int32)), dim=1) for each in (reference, candidate)
    )
    return float((expected.exp() * (expected - found)).sum(dim=1).mean())


def test_magnitudes_say_where_a_range_should_end():
    """Against trying every element of the sample out; sums of parts are the sum of all."""
    x = torch.from_numpy(np.random.default_rng(3).standard_t(3, (64, 96)).astype(np.float32))
    whole, parts = Magnitudes(96), [Magnitudes(96), Magnitudes(96)]
    whole.add(x)
    for part, rows in zip(parts, (x[:10], x[10:]), strict=True):
        part.add(rows)
    parts[0].merge(parts[1])
    assert parts[0].rows == whole.rows == 64
    assert parts[0].greatest == whole.greatest == float(x.abs().max())
    for share in (0.5, 0.99, 1.0):
        assert parts[0].quantile(share) == whole.quantile(share)
        assert whole.quantile(share) == pytest.approx(float(x.abs().flatten().quantile(share)), rel=0.035)
    for element in ("int8", "fp8_e4m3", "int4"):
        scheme = Scheme(element, "tensor")

        def loss(end: float, scheme: Scheme = scheme) -> float:
            scale = torch.tensor([end / scheme.numbers.half_range])
            return float((dequantise(quantise(x, scheme, scale)) - x).square().sum())

        best = min(loss(whole.greatest * 2.0 ** (-step / 8)) for step in range(41))
        assert loss(parts[0].least_squares(scheme)) < 1.05 * best
    assert whole.least_squares(Scheme("int4", "tensor")) < 0.5 * whole.greatest


def test_nothing_heard_is_no_error():
    silent = Magnitudes(4)
    silent.add(torch.zeros(3, 4))
    for scales in ("mse", "minmax", "percentile"):
        static = Static(StaticOptions(scales=scales))
        assert static.scale("here", Scheme("int8", "tensor"), {"range": silent}) == 1.0


@pytest.mark.parametrize("scheme", ["W8A8-static", "FP8_STATIC", "W8A8C8"])
def test_static_scales_are_stored_and_served(scheme, fp32_model, tmp_path, text):
    recipe = recipe_from({"steps": [{"step": "quantise", "algorithm": "rtn", "scheme": scheme}], **ROWS})
    result = compress(fp32_model, tmp_path / "out", recipe, calibration_text=text)
    assert error(result.path, fp32_model) < 0.04
    names = [name for name in result.layers if "proj" in name]
    with Checkpoint.open(result.path, verify=True) as checkpoint:
        assert sum(checkpoint.info(name).nbytes for name in checkpoint.names()) == result.output_bytes
        for name in names:
            stored = checkpoint.tensor(f"{name}.input_scale")
            assert stored.shape == (1,)
            assert float(stored[0]) == result.layers[name]["input_scale"] > 0
        cached = [name for name in checkpoint.names() if name.endswith(("k_scale", "v_scale"))]
        assert len(cached) == (4 if scheme == "W8A8C8" else 0)
        assert checkpoint.quantization.kv_element == ("fp8_e4m3" if scheme == "W8A8C8" else None)
    states = load_model(result.path).program.states
    assert all((state.dtype == "fp32") == (scheme != "W8A8C8") for state in states)


def test_fp8_bears_outliers_that_int8_does_not(fp32_model, tmp_path, text):
    """One column 60 times as loud: of int8's steps little is left for the others, fp8's are as fine for each."""
    model = with_loud_columns(fp32_model, tmp_path / "model", 60)
    int8, fp8 = (cost(model, tmp_path / scheme, text, scheme) for scheme in ("W8A8-static", "FP8_STATIC"))
    assert fp8 < 0.5 * int8


def test_the_choice_of_a_range_is_the_recipes(fp32_model, tmp_path, text):
    ends = {}
    for options in ({"scales": "minmax"}, {"scales": "percentile", "percentile": 99.0}, {"scales": "mse"}):
        calibrate = {
            "step": "calibrate",
            "algorithm": "static",
            "options": options,
            "rules": [{"match": "re:.*down_proj", "options": {"scales": "minmax"}}],
        }
        steps = [calibrate, {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8-static"}]
        result = compress(
            fp32_model, tmp_path / options["scales"], recipe_from({"steps": steps, **ROWS}), calibration_text=text
        )
        ends[options["scales"]] = {name: layer["input_scale"] for name, layer in result.layers.items()}
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    assert ends["percentile"][first] < ends["minmax"][first]
    assert ends["mse"][first] <= ends["minmax"][first]
    assert ends["percentile"][last] == pytest.approx(ends["minmax"][last], rel=0.1)


def test_a_layer_may_keep_its_keys_and_values(fp32_model, tmp_path, text):
    rule = {"match": "model.layers.0.self_attn", "options": {"kv": "dense"}}
    steps = [
        {"step": "calibrate", "algorithm": "static", "rules": [rule]},
        {"step": "quantise", "algorithm": "rtn", "scheme": "W8A16-kv8"},
    ]
    result = compress(fp32_model, tmp_path / "out", recipe_from({"steps": steps, **ROWS}), calibration_text=text)
    source = load_model(result.path)
    assert [isinstance(state.dtype, Scheme) for state in source.program.states] == [False, True]
    assert [name for name in source.checkpoint.names() if name.endswith("_scale") and ".k_scale" in name] == [
        "model.layers.1.self_attn.k_scale"
    ]
    stored = [state.dtype for state in choose_numerics(source.program, "fast").states]
    assert stored[0] == "bf16"
    assert isinstance(stored[1], Scheme)
    assert any("in 1 of 2 layers" in warning for warning in source.warnings)


def test_scales_of_a_cache_are_of_what_is_stored(fp32_model, tmp_path, text):
    """Of keys behind their rotation and of values, in the model as it was compressed so far."""
    steps = [
        {"step": "calibrate", "algorithm": "static", "options": {"scales": "minmax"}},
        {"step": "quantise", "algorithm": "gptq", "scheme": "W4A16-g16-kvfp8"},
    ]
    recipe = recipe_from({"steps": steps, **ROWS})
    result = compress(fp32_model, tmp_path / "out", recipe, calibration_text=text)
    source, rows = load_model(result.path), check(fp32_model, recipe, text).rows
    assert rows is not None
    found = dict[str, float]()
    plain = tuple(replace(state, dtype="fp32") for state in source.program.states)  # the walk rounds no keys
    program = replace(source.program, states=plain)

    def heard(name: str, x: torch.Tensor) -> None:
        found[name] = max(found.get(name, 0.0), float(x.abs().max()))

    taps = [name for op in program.ops if op.kind == "kv_write" for name in op.inputs[:2]]
    table, memory = WeightTable(program, source), FunctionalMemory.of(program)
    inputs = whole_sequence_inputs(torch.from_numpy(rows.token_ids))
    with torch.no_grad():
        run_ops(program, 0, len(program.ops), inputs, ("logits",), table, memory, taps, heard)
    for layer in range(2):
        for leaf, tap in zip(("k_scale", "v_scale"), taps[2 * layer : 2 * layer + 2], strict=True):
            stored = float(source.checkpoint.tensor(f"model.layers.{layer}.self_attn.{leaf}")[0])
            assert stored * 448 == pytest.approx(found[tap], rel=1e-4)


def test_what_calibration_cannot_do_is_said(fp32_model, tmp_path, text):
    calibrate = {"step": "calibrate", "algorithm": "static"}
    coded = {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8-static"}
    for steps, message in (
        ([calibrate, {"step": "sparsify", "algorithm": "magnitude"}], "calibrate finds scales of activations"),
        ([calibrate, {"step": "sparsify", "algorithm": "magnitude"}, coded], "comes after calibrate"),
        ([calibrate, calibrate, coded], "two calibrate steps"),
        ([{**calibrate, "options": {"percentile": 20}}, coded], "percentile of static is 20"),
        ([{**calibrate, "rules": [{"match": "nothing", "options": {"scales": "mse"}}]}, coded], "matches no module"),
        ([{**coded, "scheme": "W4A16-static"}], "W4A16 does not round activations"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(fp32_model, recipe_from({"steps": steps, **ROWS}), text)
    with pytest.raises(ConfigError, match="needs scales of activations from calibration"):
        quantised_at_load(load_model(fp32_model), "W8A8-static")


def test_four_bits_are_usable_rotated_and_broken_without(loud_town, tmp_path):
    found = {}
    for name, before in (("plain", []), ("rotated", [ROTATE])):
        steps = [*before, {"step": "quantise", "algorithm": "rtn", "scheme": "W4A4-g32"}]
        made = compress(loud_town, tmp_path / name, recipe_from({"steps": steps}))
        found[name] = divergence(made.path, loud_town)
    assert found["plain"] > 1
    assert found["rotated"] < 0.05
