# SPDX-License-Identifier: Apache-2.0
"""LLM.int8(): planted outlier columns are found exactly and multiplied apart; what plain W8A8 loses to them comes
back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import LOUD, error, with_loud_columns
from walking import FEW

from linnet.compress import check, compress, make_recipe, mix, recipe_from
from linnet.compress.disk import disk_need
from linnet.compress.statistic import ColumnMagnitude
from linnet.compress.tables import make_algorithm
from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.schemes import parse_scheme
from linnet.schemes.terms import calm_order, one_hot

W8A8 = parse_scheme("W8A8").linear
ROWS, COLUMNS = 40, 96


def magnitude(x: torch.Tensor) -> dict:
    found = {"magnitude": ColumnMagnitude(x.shape[1])}
    found["magnitude"].add(x)
    return found


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each token in int8 with one scale."""
    scale = x.abs().amax(dim=1, keepdim=True) / 127.5
    return (x / scale).round().clamp(-128, 127) * scale


@pytest.mark.parametrize("seed", range(6))
def test_planted_outliers_are_found_exactly_and_quality_comes_back(seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(400, COLUMNS, generator=generator), torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    planted = sorted(torch.randperm(COLUMNS, generator=generator)[:3].tolist())
    x[:, planted] *= 60
    fitted = make_algorithm("quantise", "llm_int8", {"most": 0.1}).fit("m", w, W8A8, magnitude(x), lambda _: None)
    assert fitted.outliers is not None
    assert list(fitted.outliers.columns) == planted, f"seed {seed}"
    assert not fitted.packed.codes()[:, planted].any()
    exact = x @ w.T
    plain = make_algorithm("quantise", "rtn", {}).fit("m", w, W8A8, {}, lambda _: None).packed
    lost = (rounded(x) @ torch.from_numpy(plain.dequantize()).T - exact).square().sum()
    calm = x[:, calm_order(planted, COLUMNS).astype(np.int64)]
    outlying = (x @ torch.from_numpy(one_hot(planted, COLUMNS)).T).bfloat16().float()
    assert torch.equal(x @ torch.from_numpy(one_hot(planted, COLUMNS)).T, x[:, planted])
    apart = outlying @ torch.from_numpy(fitted.outliers.weight.astype(np.float32)).T
    left = (rounded(calm) @ torch.from_numpy(fitted.packed.dequantize()).T + apart - exact).square().sum()
    assert left < lost / 50, f"seed {seed}"


def test_the_loudest_are_taken_where_too_many_are_loud():
    x = torch.ones(4, COLUMNS) * 7
    x[:, [5, 80]] = 50
    made = make_algorithm("quantise", "llm_int8", {"most": 2 / COLUMNS})
    assert made.outliers(x.amax(dim=0)) == [5, 80]
    assert make_algorithm("quantise", "llm_int8", {"threshold": 60}).outliers(x.amax(dim=0)) == []


def test_what_stands_in_for_an_outlier_is_no_outlier():
    for seed in range(20):
        random = np.random.default_rng(seed)
        width = int(random.integers(2, 50))
        outliers = sorted(random.choice(width, int(random.integers(1, width)), replace=False).tolist())
        order = calm_order(outliers, width)
        assert not set(order.tolist()) & set(outliers), f"seed {seed}"
        calm = [column for column in range(width) if column not in outliers]
        assert (order[calm] == calm).all(), f"seed {seed}"


def recipe(algorithm: str, scheme: str = "W8A8", **options):
    return make_recipe(scheme, algorithm, options=options, **FEW)


@pytest.fixture(scope="module")
def loud(fp32_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_loud_columns(fp32_model, tmp_path_factory.mktemp("int8") / "loud", 400)


def test_a_model_with_loud_columns(loud: Path, tmp_path: Path, text: str):
    errors, blocks = {}, {}
    for name in ("gptq", "llm_int8"):
        result = compress(loud, tmp_path / name, recipe(name), calibration_text=text)
        stored = Checkpoint.open(result.path, verify=True)
        assert result.output_bytes == stored.nbytes
        errors[name] = error(result.path, loud)
        blocks[name] = sum(block["output_error"] for block in result.manifest["record"]["blocks"].values())
    terms = stored.quantization.terms
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    assert {module for module in result.layers if module.endswith(readers)} <= terms.keys()
    for module, item in terms.items():
        assert result.layers[module]["outlier_columns"] == len(item.outliers)
        if module.endswith(readers):
            assert item.outliers == (LOUD,)
    assert "Linnet alone" in (result.path / "README.md").read_text()
    assert errors["llm_int8"] < 0.1 * errors["gptq"]
    assert blocks["llm_int8"] < 0.1 * blocks["gptq"]
    ops = {op.name: op for op in load_model(result.path).program.ops}
    split = {ops[f"layers.0.attention.{name}.whole"].inputs for name in ("query", "key", "value")}
    assert split == {("layers.0.attention.query.calm",)}  # linears of the same outliers share it


def test_the_room_that_outliers_take_is_foreseen(loud: Path, tmp_path: Path, text: str):
    """Exactly where as many inputs are outliers as may be, else at most; none where only weights are rounded."""
    for scheme, threshold in (("W8A8", 1e-6), ("W8A8", 60.0), ("W8A16", 1e-6)):
        wanted = recipe("llm_int8", scheme, threshold=threshold, most=0.2)
        foreseen = disk_need(check(loud, wanted, text)).output
        result = compress(loud, tmp_path / f"{scheme}-{threshold}", wanted, calibration_text=text)
        exact = (scheme, threshold) != ("W8A8", 60.0)
        assert result.output_bytes == foreseen if exact else result.output_bytes < foreseen
    plain = disk_need(check(loud, recipe("rtn"), text)).output
    assert disk_need(check(loud, recipe("llm_int8", most=0.2), text)).output > plain


def test_bits_under_a_budget(loud: Path, tmp_path: Path, text: str):
    """Outliers are priced as if they were as many as may be, so that the result never exceeds the budget."""
    wanted = recipe("llm_int8", most=0.2)
    every = mix(loud, wanted, lambda _: 10**9, calibration_text=text)
    least, most = (uniform.bytes for uniform in every.uniform)
    assert most == disk_need(check(loud, wanted, text)).output
    budget = (least + most) // 2
    plan = mix(loud, wanted, lambda _: budget, calibration_text=text)
    result = compress(loud, tmp_path / "out", plan.recipe, calibration_text=text)
    assert result.output_bytes <= plan.bytes <= budget
    assert set(plan.modules) == {"W4A8", "W8A8"}
    assert any(layer.get("outlier_columns") for layer in result.layers.values())


def test_what_is_foreseen_of_a_layer_counts_its_outliers():
    """A weight whose outlier columns stand apart means what they say there."""
    made = make_algorithm("quantise", "llm_int8", {"threshold": 5.0, "most": 0.5})
    weight, magnitude = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), ColumnMagnitude(32)
    magnitude.add(torch.ones(4, 32).index_fill_(1, torch.tensor([3, 30]), 9.0))
    scheme = parse_scheme("W8A8").linear
    fitted = made.fit("here", weight, scheme, {"magnitude": magnitude}, lambda _: None)
    whole = torch.from_numpy(fitted.whole())
    assert fitted.outliers is not None
    assert fitted.outliers.columns == (3, 30)
    assert torch.equal(whole[:, [3, 30]], weight[:, [3, 30]].bfloat16().float())
    error = float((whole - weight).square().sum() / weight.square().sum())
    assert abs(error - fitted.weight_error) < 1e-6 < error


def test_a_repair_goes_beside_outliers(loud: Path, tmp_path: Path, text: str):
    steps = [
        {"step": "quantise", "algorithm": "llm_int8", "scheme": "W8A8"},
        {"step": "repair", "algorithm": "eora", "options": {"rank": 2}},
    ]
    result = compress(loud, tmp_path / "out", recipe_from({"steps": steps, **FEW}), calibration_text=text)
    both = [item for item in Checkpoint.open(result.path).quantization.terms.values() if item.outliers and item.rank]
    assert both
    names = [op.name for op in load_model(result.path).program.ops]
    assert any(name.endswith(".sum") for name in names)


@pytest.mark.parametrize(
    ("outliers", "message"),
    [
        ([3, 3], "each once, ascending"),
        ([5, 3], "each once, ascending"),
        ([-1], "each once, ascending"),
        ([31, 32], "outliers up to column 32"),
        (list(range(32)), "some column must be none"),
        (["3"], "a list of such"),
        (3, "a list of such"),
    ],
)
def test_places_that_cannot_be_are_refused(loud: Path, tmp_path: Path, text: str, outliers, message: str):
    made = compress(loud, tmp_path / "out", recipe("llm_int8"), calibration_text=text).path
    config = json.loads((made / "config.json").read_text())
    terms = config["quantization_config"]["terms"]
    module = next(name for name in terms if "down_proj" not in name)
    terms[module]["outliers"] = outliers
    (made / "config.json").write_text(json.dumps(config))
    (made / "linnet_manifest.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_model(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 0}, "threshold of llm_int8 is 0"), ({"most": 1}, "most of llm_int8 is 1")],
)
def test_options_are_checked(tiny_model: Path, text: str, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        check(tiny_model, recipe("llm_int8", **options), text)
