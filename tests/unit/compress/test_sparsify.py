# SPDX-License-Identifier: Apache-2.0
"""Pruning: exact patterns, each criterion better than the one before it, zeros that stay zeros under every code."""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import with_loud_columns
from walking import FEW, StopAt, hashes

from linnet.compress import CancelToken, Interrupted, check, compress, recipe_from
from linnet.compress.algorithms.esparse import entropy
from linnet.compress.masks import greatest
from linnet.compress.statistic import ColumnSquares, Hessian, RowSample
from linnet.compress.tables import ALGORITHMS, make_algorithm
from linnet.errors import ConfigError
from linnet.formats import Checkpoint
from linnet.schemes import PackedWeight, parse_pattern, parse_scheme

ROWS, COLUMNS, SAMPLES = 24, 160, 600
SPARSIFIERS = tuple(ALGORITHMS["sparsify"])
PATTERNS = ("50%", "2:4", "4:8", "30%")
UP = "model.layers.1.mlp.up_proj"


def inputs(seed: int, columns: int = COLUMNS) -> torch.Tensor:
    """Correlated rows with a few columns far louder than the others, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    loudness = torch.exp(torch.randn(columns, generator=generator))
    loudness[torch.randperm(columns, generator=generator)[:4]] *= 20
    return (torch.randn(SAMPLES, columns, generator=generator) @ (mixing + 0.5 * torch.eye(columns))) * loudness


def weight(seed: int, columns: int = COLUMNS, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(100 + seed)) * 0.05


def statistics(x: torch.Tensor) -> dict:
    found = {"squares": ColumnSquares(x.shape[1]), "sample": RowSample(x.shape[1]), "hessian": Hessian(x.shape[1])}
    for statistic in found.values():
        statistic.add(x)
    return found


def pruned(name: str, w: torch.Tensor, x: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    sparsifier = make_algorithm("sparsify", name, options)
    wanted = {key: value for key, value in statistics(x).items() if key in sparsifier.statistics}
    before = w.clone()
    values, kept = sparsifier.sparsify("m", w, wanted, lambda _: None)
    assert torch.equal(w, before)
    assert not values[~kept].any()
    return values, kept


def objective(values: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (values - w).double().T).square().sum() / (x.double() @ w.double().T).square().sum())


@pytest.mark.parametrize("name", SPARSIFIERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_exactly_what_the_pattern_says_is_pruned(name, pattern):
    _, kept = pruned(name, weight(0), inputs(0), pattern=pattern)
    known = parse_pattern(pattern)
    if known.group is not None:
        assert (kept.view(ROWS, -1, known.group).sum(2) == known.kept).all()
    else:
        # SparseGPT compares within blocks of 128 columns, Wanda and entropy within rows, magnitude within the layer
        assert int((~kept).sum()) == pytest.approx(ROWS * COLUMNS * known.share, abs=2)
        if name in ("wanda", "esparse"):
            assert ((~kept).sum(1) == int(COLUMNS * known.share)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pattern", ["50%", "2:4", "4:8"])
def test_each_criterion_is_better_than_the_one_it_goes_beyond(seed, pattern):
    w, x = weight(seed), inputs(seed)
    # the published damping, 1 % of a mean that a few outliers make, drowns the quiet columns
    options = {"sparsegpt": {"damping": 0.003}}
    errors = {
        name: objective(pruned(name, w, x, pattern=pattern, **options.get(name, {}))[0], w, x) for name in SPARSIFIERS
    }
    assert errors["sparsegpt"] < errors["wanda"]
    assert errors["wanda"] < 0.5 * errors["magnitude"]
    assert errors["esparse"] < 0.7 * errors["magnitude"]


def test_magnitude_and_wanda_are_their_definitions():
    w, x = weight(1), inputs(1)
    values, kept = pruned("magnitude", w, x, among="layer")
    threshold = w.abs().flatten().sort().values[w.numel() // 2]
    assert torch.equal(kept, w.abs() >= threshold)
    assert torch.equal(values, torch.where(kept, w, 0))
    score = w.abs().double() * x.double().norm(dim=0)
    values, kept = pruned("wanda", w, x)
    order = score.argsort(dim=1)
    assert not kept.gather(1, order[:, : COLUMNS // 2]).any()
    assert torch.equal(values, torch.where(kept, w, 0))
    kept = pruned("wanda", w, x, pattern="2:4")[1].view(ROWS, -1, 4)
    score = score.view(ROWS, -1, 4)
    assert (score.masked_fill(~kept, torch.inf).amin(2) >= score.masked_fill(kept, 0).amax(2)).all()


def textbook(w: torch.Tensor, x: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """SparseGPT for N:M with the inverse Hessian itself, float64, a column at a time."""
    h = (x.T @ x).double()
    h += torch.eye(len(h)) * 0.01 * torch.diagonal(h).mean()
    inverse, w = torch.linalg.inv(h), w.double().clone()
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, w.shape[1], group):
        score = (w[:, start : start + group] / torch.diagonal(factor)[start : start + group]) ** 2
        gone = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argsort(1)[:, : group - kept], True)
        for j in range(start, start + group):
            owed = torch.where(gone[:, j - start], w[:, j], 0) / inverse[0, 0]
            w[:, j:] -= torch.outer(owed, inverse[0])
            inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return w


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_sparsegpt_equals_the_textbook(pattern, kept, group):
    w, x = weight(2), inputs(2)
    values, _ = pruned("sparsegpt", w, x, pattern=pattern)
    expected = textbook(w, x, kept, group)
    assert ((values - expected).abs() < 1e-4).double().mean() > 0.99  # a tie may fall the other way in fp32


def test_where_inputs_differ_in_loudness_blocks_need_not_lose_alike():
    w, x = weight(1, 512), inputs(1, 512)
    errors = [objective(pruned("sparsegpt", w, x, among=among)[0], w, x) for among in ("layer", "block")]
    assert errors[0] < 0.9 * errors[1]


def test_equal_scores_are_counted_exactly():
    scores = torch.ones(3, 10)
    assert greatest(scores, parse_pattern("50%")).tolist() == [[True] * 5 + [False] * 5] * 3
    assert greatest(scores[:, :8], parse_pattern("2:4")).tolist() == [[True, True, False, False] * 2] * 3
    assert int(greatest(scores, parse_pattern("50%"), "layer").sum()) == 15


def test_inputs_that_nobody_hears_go_first():
    w, x = weight(3), inputs(3)
    x[:, :40] = 0
    _, kept = pruned("sparsegpt", w, x)
    assert not kept[:, :40].any()


def test_entropy_tells_a_spread_value_from_a_peaked_one():
    spread, peaked = torch.arange(320.0) % 32, torch.zeros(320)
    peaked[0] = 31.0
    found = entropy(torch.stack([spread, peaked, torch.ones(320)], dim=1), 32)
    assert found[0] == pytest.approx(np.log(32), rel=1e-5)
    assert 0 < found[1] < 0.1
    assert found[2] == 0


def test_wanda_is_at_least_ten_times_faster_than_sparsegpt():
    """CPU time of one 512 x 512 layer, statistics included, the best of nine (other threads may spin meanwhile)."""
    w, x = weight(0, 512, 512), inputs(0, 512)
    times = {}
    for name in ("wanda", "sparsegpt"):
        sparsifier = make_algorithm("sparsify", name, {})
        for _ in range(9):
            started = time.process_time()
            found = {key: kind(512) for key, kind in sparsifier.statistics.items()}
            for statistic in found.values():
                statistic.add(x)
            sparsifier.sparsify("m", w, found, lambda _: None)
            times[name] = min(times.get(name, 1e9), time.process_time() - started)
    assert times["sparsegpt"] > 10 * times["wanda"], times


# -- in a recipe --------------------------------------------------------------------------------------------------


def sparsify(algorithm: str = "wanda", rules: tuple = (), **options) -> dict:
    return {"step": "sparsify", "algorithm": algorithm, "options": options, "rules": list(rules)}


def quantise(algorithm: str = "gptq", scheme: str = "W4A16-g16", **options) -> dict:
    return {"step": "quantise", "algorithm": algorithm, "scheme": scheme, "options": options}


FAST = {"autoround": {"iterations": 4, "batch": 1}, "obc": {"order": "dearest"}}


def recipe(*steps: dict):
    return recipe_from({"steps": list(steps), **FEW})


@pytest.mark.parametrize("algorithm", SPARSIFIERS)
def test_alone_it_gives_plain_numbers_with_zeros(tiny_model: Path, tmp_path: Path, text: str, algorithm: str):
    """Those of 2:4 are left out of the file, those of other patterns lie in it."""
    rules = [
        {"match": "re:.*down_proj", "options": {"pattern": "4:8"}},
        {"match": "re:.*k_proj", "options": {"pattern": "dense"}},
    ]
    result = compress(
        tiny_model, tmp_path / "out", recipe(sparsify(algorithm, rules, pattern="2:4")), calibration_text=text
    )
    before, after = Checkpoint.open(tiny_model), Checkpoint.open(result.path, verify=True)
    assert after.nbytes == result.output_bytes < before.nbytes
    sparse = {module: scheme for module, scheme in after.schemes().items() if scheme.weight.sparsity is not None}
    assert set(sparse) == {module for module in result.layers if not module.endswith("down_proj")}
    for name in before.names():
        module, was = name.removesuffix(".weight"), before.tensor(name).astype(np.float32)
        now = after.linear(module).with_zeros() if module in sparse else after.tensor(name)
        assert (now.dtype, now.shape) == (before.tensor(name).dtype, was.shape)
        now = now.astype(np.float32)
        if module not in result.layers:
            assert (was == now).all()
            continue
        group = 8 if module.endswith("down_proj") else 4
        zeros = (now.reshape(len(now), -1, group) == 0).sum(2)
        assert (zeros >= group // 2).all()
        assert zeros.mean() < group / 2 + 0.05  # no more than were zero before, or rounded to it
        assert result.layers[module]["pruned"] == pytest.approx(0.5)
        assert result.layers[module]["pattern"] == f"{group // 2}:{group}"
    assert len(result.layers) == 12
    assert not any("k_proj" in module or module == "lm_head" for module in result.layers)
    assert result.manifest["record"]["recipe"]["steps"][0]["step"] == "sparsify"
    assert after.config["quantization_config"]["sparsity_config"]["targets"] == sorted(sparse)
    assert "compressed-tensors 0.14" in (result.path / "README.md").read_text()


def test_other_patterns_alone_give_a_dense_checkpoint(tiny_model: Path, tmp_path: Path):
    result = compress(tiny_model, tmp_path / "out", recipe(sparsify("magnitude", pattern="4:8")))
    before, after = Checkpoint.open(tiny_model), Checkpoint.open(result.path, verify=True)
    assert "quantization_config" not in after.config
    assert after.nbytes == before.nbytes
    assert "dense, with zeros" in (result.path / "README.md").read_text()


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8", "W4A16-g16", "W3A16-g16", "FP8", "W4A16-g16-asym", "W2A16-g16"])
def test_codes_lose_their_zeros_where_that_saves_bytes(tiny_model: Path, tmp_path: Path, scheme: str):
    """Bit for bit the numbers that codes alone would mean, in fewer bytes; size and method are what was announced."""
    results = {}
    for pattern in ("2:4", "4:8"):
        steps = recipe(sparsify("magnitude", pattern=pattern), quantise("rtn", scheme))
        results[pattern] = compress(tiny_model, tmp_path / pattern[0], steps)
    fewer = scheme not in ("W4A16-g16-asym", "W2A16-g16")
    stored = {pattern: Checkpoint.open(result.path, verify=True) for pattern, result in results.items()}
    with stored["2:4"] as found, stored["4:8"] as other:
        assert found.nbytes == results["2:4"].output_bytes
        assert (found.nbytes < other.nbytes) == fewer
        own = fewer and scheme in ("W4A16-g16", "W3A16-g16")
        assert found.quantization.method == ("linnet" if own else "compressed-tensors")
        packed = found.linear(UP)
        assert isinstance(packed, PackedWeight)
        assert (packed.scheme.weight.sparsity == "2:4") == fewer
        whole = packed.with_zeros()
        assert isinstance(whole, PackedWeight)
        assert whole.scheme.weight.sparsity is None
        assert np.array_equal(whole.dequantize(), packed.dequantize())


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W4A16-g16-asym", "W8A8", "TERNARY-g32", "NF4-g16"])
@pytest.mark.parametrize("algorithm", ["gptq", "rtn", "awq", "obc", "autoround"])
@pytest.mark.parametrize("sparsifier", ["magnitude", "sparsegpt"])
def test_what_was_pruned_is_zero_in_the_codes(tiny_model, tmp_path, text, scheme, algorithm, sparsifier):
    result = compress(
        tiny_model,
        tmp_path / "out",
        recipe(sparsify(sparsifier, pattern="2:4"), quantise(algorithm, scheme, **FAST.get(algorithm, {}))),
        calibration_text=text,
    )
    stored = Checkpoint.open(result.path)
    for module, layer in result.layers.items():
        packed = stored.linear(module)
        assert isinstance(packed, PackedWeight)
        if "sparsify" in layer:
            zeros = (packed.dequantize().reshape(packed.shape[0], -1, 4) == 0).sum(2)
            assert (zeros >= 2).all()
            assert layer["sparsify"]["pattern"] == "2:4"
    assert sum("sparsify" in layer for layer in result.layers.values()) == 14


@pytest.mark.parametrize("options", [{"act_order": True}, {"act_order": False}, None])
def test_with_zeros_held_the_others_make_up_for_them(options):
    """GPTQ, and without ``options`` OBC, against rounding."""
    w, x = weight(5), inputs(5)
    values, kept = pruned("sparsegpt", w, x, pattern="2:4")
    linear, found = parse_scheme("W4A16-g32").linear, statistics(x)
    errors = {}
    for name in ("rtn", "better"):
        better = ("obc", {"order": "dearest"}) if options is None else ("gptq", options)
        fit = make_algorithm("quantise", *(("rtn", {}) if name == "rtn" else better))
        fitted = fit.fit("m", values, linear, found, lambda _: None, kept)
        result = torch.from_numpy(fitted.packed.dequantize())
        assert not result[~kept].any()
        errors[name] = objective(result, w, x)
    alone = objective(values, w, x)
    assert alone < errors["better"] < errors["rtn"]


def test_a_block_that_is_learned_makes_up_for_what_was_pruned(tiny_model, tmp_path, text):
    """AutoRound aims at the dense block's output: nearer to it than rounding what is left of the weights."""
    errors = {}
    for name, options in (("rtn", {}), ("autoround", {"iterations": 60, "batch": 2})):
        chain = recipe(sparsify("wanda", pattern="4:8"), quantise(name, "W4A16-g16", **options))
        result = compress(tiny_model, tmp_path / name, chain, calibration_text=text)
        errors[name] = [block["output_error"] for block in result.manifest["record"]["blocks"].values()]
    assert np.all(np.array(errors["autoround"]) < errors["rtn"]), errors


def test_pruned_modules_without_codes_beside_a_learned_block(tiny_model, tmp_path, text):
    """A rule keeps v dense, another leaves q unpruned: each module becomes what its own rules say."""
    dense = {"rules": [{"match": "re:.*v_proj", "scheme": "dense"}]}
    whole = {"rules": [{"match": "re:.*q_proj", "options": {"pattern": "dense"}}]}
    chain = recipe(sparsify("wanda", pattern="2:4") | whole, quantise("autoround", "W4A16-g16", iterations=2) | dense)
    result = compress(tiny_model, tmp_path / "out", chain, calibration_text=text)
    stored = Checkpoint.open(result.path)
    for module, layer in result.layers.items():
        if module.endswith("v_proj"):
            values = stored.linear(module).dequantize()
            assert stored.scheme_of(module).weight.element in ("bf16", "fp16", "fp32")
            assert (layer["algorithm"], layer["pattern"]) == ("wanda", "2:4")
            assert ((values.reshape(len(values), -1, 4) == 0).sum(2) >= 2).all()
        else:
            assert layer["algorithm"] == "autoround"
            assert ("sparsify" in layer) != module.endswith("q_proj")


def test_a_chain_resumes_to_the_same_bytes(fp32_model: Path, tmp_path: Path, text: str):
    loud = with_loud_columns(fp32_model, tmp_path / "loud", 60)
    chain = recipe(
        {"step": "smooth", "algorithm": "smoothquant", "options": {"alpha": 0.5}},
        sparsify("sparsegpt", pattern="2:4"),
        quantise("gptq", "W8A8"),
    )
    expected = compress(loud, tmp_path / "whole", chain, calibration_text=text)
    for count in (25, 45, 10):
        token = CancelToken()
        with suppress(Interrupted):
            compress(loud, tmp_path / "part", chain, calibration_text=text, observer=StopAt(token, count), cancel=token)
            pytest.fail(f"was not stopped at {count}")
    resumed = compress(loud, tmp_path / "part", chain, calibration_text=text)
    assert resumed.resumed
    assert hashes(resumed.path) == hashes(expected.path)
    assert json.dumps(resumed.layers) == json.dumps(expected.layers)


def test_plain_numbers_without_zeros_resume_to_the_same_bytes(tiny_model: Path, tmp_path: Path, text: str):
    alone = recipe(sparsify("wanda", pattern="2:4"))
    expected = compress(tiny_model, tmp_path / "whole", alone, calibration_text=text)
    token = CancelToken()
    with suppress(Interrupted):
        compress(tiny_model, tmp_path / "part", alone, calibration_text=text, observer=StopAt(token, 20), cancel=token)
        pytest.fail("was not stopped")
    resumed = compress(tiny_model, tmp_path / "part", alone, calibration_text=text)
    assert resumed.resumed
    assert hashes(resumed.path) == hashes(expected.path)


SMOOTH = {"step": "smooth", "algorithm": "smoothquant"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([quantise(), sparsify()], r"step 2 \(sparsify\) comes after quantise, which leaves codes that it cannot"),
        ([sparsify(), SMOOTH, quantise()], r"step 2 \(smooth\) comes after sparsify, which leaves zeros"),
        ([sparsify(), sparsify(), quantise()], "two sparsify steps, and a weight is pruned once"),
        ([SMOOTH, sparsify()], "smooth makes weights easier to quantise, and the recipe has no quantise step"),
        ([sparsify() | {"scheme": "W4A16"}], r"\(sparsify\): scheme and group_size belong to a quantise step"),
    ],
)
def test_senseless_orders_say_what_is_possible(steps, message):
    with pytest.raises(ConfigError, match=message):
        recipe(*steps)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (sparsify("obd"), "algorithm of a sparsify step is 'obd'; accepted: magnitude, wanda"),
        (sparsify(pattern="5:4"), "pattern '5:4' is unknown; accepted: N:M .* 2:4, .* 50%, dense"),
        (sparsify(pattern="100%"), "pattern '100%' is unknown"),
        (sparsify(pattern="dense"), "keeps every layer dense"),
        (sparsify(pattern="2:6"), "pattern 2:6 does not divide its 32 columns"),
        (sparsify(rules=[{"match": "lm_head", "options": {"pattern": "2:4"}}]), "'lm_head' of wanda matches no module"),
        (sparsify(share=0.5), "there is no key 'share'; known keys: pattern, shares, among"),
        (sparsify("sparsegpt", damping=0), "damping of sparsegpt is 0"),
        (sparsify("esparse", bins=1), "bins of esparse is 1"),
    ],
)
def test_refusals_before_reading(tiny_model, text, step, message):
    with pytest.raises(ConfigError, match=message):
        check(tiny_model, recipe(step), text)


def test_magnitude_needs_no_rows(tiny_model, tmp_path):
    result = compress(tiny_model, tmp_path / "out", recipe(sparsify("magnitude"), quantise("rtn")))
    assert result.manifest["record"]["calibration"] is None
    shares = [layer["sparsify"]["pruned"] for layer in result.layers.values()]
    assert shares == pytest.approx([0.5] * 14)


def test_memory_of_the_mask_and_the_hessian_is_predicted(tiny_model, text):
    def predicted(*steps: dict) -> int:
        return check(tiny_model, recipe(*steps), text).prediction.fit

    assert predicted(quantise("rtn")) < predicted(sparsify("magnitude"), quantise("rtn"))
    assert predicted(sparsify("magnitude")) < predicted(sparsify("sparsegpt"))
