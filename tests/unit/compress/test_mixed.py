# SPDX-License-Identifier: Apache-2.0
"""Bits under a budget: what is foreseen is measured; the plan fits, is a plain recipe, and is always the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from walking import FEW

from linnet import demo
from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.weights import WeightTable
from linnet.compress import CancelToken, Interrupted, check_target, compress, make_recipe, mix, recipe_from
from linnet.compress.algorithms.rtn import Rtn, RtnOptions
from linnet.compress.knapsack import Choice
from linnet.compress.mixed import _chosen, candidates
from linnet.compress.sensitivity import Wanted, sensitivities
from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.schemes.presets import parse_scheme
from linnet.text.files import read_corpus
from linnet.text.rows import calibration_rows
from linnet.text.tokenizer import Tokenizer


def tensor_bytes(path: Path) -> int:
    return Checkpoint.open(path, verify=False).nbytes


@torch.no_grad()
def log_probabilities(model: Path, ids: np.ndarray, changed: dict[str, torch.Tensor]) -> torch.Tensor:
    source = load_model(model)
    names = {weight.ref.checkpoint_name: weight.name for weight in source.program.weights}
    overrides = {names[name]: values for name, values in changed.items()}
    table, memory = WeightTable(source.program, source, overrides), FunctionalMemory.of(source.program)
    inputs = whole_sequence_inputs(torch.from_numpy(ids))
    logits = run_ops(source.program, 0, len(source.program.ops), inputs, ("logits",), table, memory)["logits"]
    assert isinstance(logits, torch.Tensor)
    return logits.log_softmax(dim=-1)


def test_what_is_foreseen_is_what_is_measured(tmp_path: Path):
    """KL of compressing one linear of the bundled model alone, four blocks' attention and feed-forward among them."""
    model, scheme = demo.model_directory(), parse_scheme("W3A16").linear
    text = read_corpus(demo.calibration_file())
    rows = calibration_rows(Tokenizer.open(model), text, 6, 256, 0, "town")
    ids = rows.token_ids
    source, fit = load_model(model), Rtn(RtnOptions(scales="mse"))
    linears = [info for info in source.linears() if info.kind == "linear"][::3]
    wanted = [Wanted(info, [scheme], fit) for info in linears]
    foreseen = sensitivities(source, rows, len(rows), wanted, 0, tmp_path, lambda _: None)
    dense, measured = log_probabilities(model, ids, {}), {}
    for info in linears:
        weight = torch.from_numpy(np.array(source.checkpoint.tensor(info.tensor), np.float32))
        rounded = fit.fit(info.module, weight, scheme, {}, lambda _: None).packed.dequantize()
        lost = log_probabilities(model, ids, {info.tensor: torch.from_numpy(rounded)})
        measured[info.module] = float((dense.exp() * (dense - lost)).sum(dim=-1).mean())
    ratios = {module: foreseen[module][0] / measured[module] for module in measured}
    assert all(0.6 < ratio < 1.6 for ratio in ratios.values()), ratios
    assert 0.85 < sum(foreseen[module][0] for module in measured) / sum(measured.values()) < 1.15
    assert max(measured.values()) > 4 * min(measured.values()), "else there would be nothing to foresee"


def test_the_result_fits_and_says_so(tiny_model: Path, tmp_path: Path, text: str):
    """Of every budget between the smallest and the largest; what reads one value gets one scheme."""
    recipe = make_recipe("W4A16-g16", "gptq", **FEW)
    every = mix(tiny_model, recipe, lambda _: 10**9, calibration_text=text)
    assert every.modules == {"W8A16": 14}
    least, most = every.uniform[0].bytes, every.uniform[-1].bytes
    assert [uniform.scheme for uniform in every.uniform] == ["W2A16-g16", "W3A16-g16", "W4A16-g16", "W8A16"]
    for budget in np.linspace(least, most, 4).astype(int).tolist():
        plan = mix(tiny_model, recipe, lambda _, budget=budget: budget, calibration_text=text)
        assert plan == mix(tiny_model, recipe, lambda _, budget=budget: budget, calibration_text=text)
        result = compress(tiny_model, tmp_path / str(budget), plan.recipe, calibration_text=text)
        assert result.output_bytes == plan.bytes <= budget
        assert tensor_bytes(result.path) == plan.bytes
        schemes = result.manifest["record"]["schemes"]
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            for layer in range(2):
                of_one_value = [schemes[f"model.layers.{layer}.{name}"] for name in names]
                assert all(each == of_one_value[0] for each in of_one_value)
        assert sum(plan.modules.values()) == 14
        assert recipe_from({"steps": [*map(_plain, plan.recipe.steps)], **FEW}) == plan.recipe


def _plain(step):
    import msgspec

    return msgspec.to_builtins(step)


def test_rules_of_the_recipe_stay(tiny_model: Path, tmp_path: Path, text: str):
    rules = [{"match": "re:.*down_proj", "scheme": "dense"}, {"match": "re:.*o_proj", "scheme": "W8A16"}]
    recipe = make_recipe("W4A16-head8", "rtn", group_size=16, rules=rules, **FEW)
    plan = mix(tiny_model, recipe, lambda model: model.checkpoint.nbytes // 2, calibration_text=text)
    result = compress(tiny_model, tmp_path / "out", plan.recipe, calibration_text=text)
    assert result.output_bytes == plan.bytes <= tensor_bytes(tiny_model) // 2
    schemes = result.manifest["record"]["schemes"]
    assert "model.layers.0.mlp.down_proj" not in schemes
    assert schemes["model.layers.1.self_attn.o_proj"]["weight"]["element"] == "int8"
    assert schemes["lm_head"]["weight"]["element"] == "int8"
    assert sum(plan.modules.values()) == 10


@pytest.mark.parametrize(
    "steps",
    [
        [{"step": "rotate", "algorithm": "quarot"}],
        [{"step": "smooth", "algorithm": "smoothquant"}],
        [{"step": "sparsify", "algorithm": "wanda"}],
    ],
    ids=str,
)
def test_whatever_comes_before(tiny_model: Path, tmp_path: Path, text: str, steps):
    quantise = {"step": "quantise", "algorithm": "gptq", "scheme": "W4A16-g16"}
    recipe = recipe_from({"steps": [*steps, quantise], **FEW})
    plan = mix(tiny_model, recipe, lambda model: int(model.checkpoint.nbytes * 0.7), calibration_text=text)
    assert compress(tiny_model, tmp_path / "out", plan.recipe, calibration_text=text).output_bytes == plan.bytes


def test_candidates_keep_what_the_scheme_says():
    def of(scheme: str, **fields):
        return candidates(make_recipe(scheme, "rtn", **fields))

    assert of("w3a16-g64-asym") == ("W2A16-g64-asym", "W3A16-g64-asym", "W4A16-g64-asym", "W8A16-asym")
    assert of("W8A8-head8") == ("W4A8-head8", "W8A8-head8")
    assert of("W4A16-g32", group_size=64) == ("W2A16-g64", "W3A16-g64", "W4A16-g64", "W8A16")


def test_little_promised_is_not_taken():
    """Two groups, equal uniform bytes: a mixture that saves a tenth of the cost, and one that saves half."""
    little = [[Choice(2, 5.0), Choice(4, 1.0)], [Choice(2, 5.6), Choice(4, 2.2)], [Choice(2, 0.0), Choice(4, 0.0)]]
    assert _chosen(little, 6) == [0, 0, 0] or _chosen(little, 6) == [1, 0, 0]
    uniform = [[Choice(2, 4.0), Choice(3, 2.0), Choice(4, 1.7)], [Choice(2, 2.1), Choice(3, 2.0), Choice(4, 0.5)]]
    assert _chosen(uniform, 6) == [1, 1]  # 3.8 for the mixture, 4.0 for the same everywhere
    uniform[1][0] = Choice(2, 1.4)
    assert _chosen(uniform, 6) == [2, 0]  # 3.1 and 4.0


def test_what_cannot_be_is_said(tiny_model: Path, text: str):
    with pytest.raises(
        ConfigError, match=r"budget is 0.00 MB; with W2A16 everywhere the result has 0.0\d MB: accepted is"
    ):
        mix(tiny_model, make_recipe("W4A16", "rtn"), lambda _: 10, calibration_text=text)
    with pytest.raises(ConfigError, match="NF4 is of none; accepted: W2A16, W3A16, W4A16, W8A16; W4A8, W8A8"):
        mix(tiny_model, make_recipe("NF4", "rtn"), lambda _: 10**9)
    rules = [{"match": "re:.*_proj", "scheme": "W8A16"}]
    with pytest.raises(ConfigError, match="the recipe's rules name a scheme for every linear"):
        mix(tiny_model, make_recipe("W4A16", "rtn", rules=rules), lambda _: 10**9)
    with pytest.raises(ConfigError, match="no quantise step"):
        mix(tiny_model, recipe_from({"steps": [{"step": "sparsify", "algorithm": "wanda"}]}), lambda _: 10**9)


def test_another_result_in_the_way_is_noticed_before_anything_is_weighed(tiny_model: Path, tmp_path: Path, text: str):
    """Only what this recipe can have become under some budget may lie there: it may be this very command's."""
    recipe = make_recipe("W4A16-g16", "rtn", **FEW)
    plan = mix(tiny_model, recipe, lambda model: int(model.checkpoint.nbytes * 0.7), calibration_text=text)
    assert plan.recipe != recipe
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    compress(tiny_model, mixed, plan.recipe, calibration_text=text)
    check_target(mixed, tiny_model, recipe)
    compress(tiny_model, other, make_recipe("W8A16", "rtn"))
    before = sorted(other.iterdir())
    for asked in (recipe, make_recipe("W4A16-g16", "gptq", **FEW), recipe_from({"steps": [_wanda()]})):
        with pytest.raises(CheckpointError, match="other: exists and is not empty; choose another output, or replace"):
            check_target(other, tiny_model, asked)
        check_target(other, tiny_model, asked, overwrite=True)
    assert sorted(other.iterdir()) == before
    check_target(tmp_path / "nothing", tiny_model, recipe)
    with pytest.raises(CheckpointError, match="the original itself"):
        check_target(tiny_model, tiny_model, recipe, overwrite=True)


def _wanda():
    return {"step": "sparsify", "algorithm": "wanda"}


def test_it_can_be_stopped(tiny_model: Path, text: str):
    token = CancelToken()
    token.cancel("the test")
    with pytest.raises(Interrupted, match="nothing was written"):
        mix(tiny_model, make_recipe("W4A16", "rtn", **FEW), lambda _: 10**9, calibration_text=text, cancel=token)
