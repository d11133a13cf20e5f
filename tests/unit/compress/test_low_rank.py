# SPDX-License-Identifier: Apache-2.0
"""Terms of low rank: the closest there are, beside codes and zeros never worse than without, in a weight's place below
the break-even; stored where other loaders refuse them; what ran is what is read back."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import with_loud_columns
from walking import FEW, StopAt, hashes, value_of

from linnet.compress import CancelToken, Interrupted, check, compress, make_recipe, recipe_from
from linnet.compress.low_rank import closest_term
from linnet.compress.statistic import ColumnMagnitude, Hessian
from linnet.compress.tables import ALGORITHMS, make_algorithm
from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.convert.source import list_tensors
from linnet.formats.programs import identify, verdicts
from linnet.models.at_load import quantised_at_load
from linnet.models.load import load_model
from linnet.schemes import parse_scheme
from linnet.schemes.terms import Terms, break_even, low_rank_bytes, plain

REPAIRS, FACTORISERS = tuple(ALGORITHMS["repair"]), tuple(ALGORITHMS["factorise"])
SHAPES = ((48, 96), (96, 48), (64, 64))
BF16_NOISE = 0.001
"""Relative, of a squared error: both narrow matrices are rounded to eight bits of mantissa."""


def inputs(seed: int, columns: int) -> torch.Tensor:
    """Correlated rows, a few columns far louder than the others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    loudness = torch.exp(torch.randn(columns, generator=generator))
    loudness[torch.randperm(columns, generator=generator)[:3]] *= 10
    return (torch.randn(500, columns, generator=generator) @ (mixing + 0.5 * torch.eye(columns))) * loudness


def weight(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + seed)) * 0.05


def statistics(x: torch.Tensor) -> dict:
    found = {"magnitude": ColumnMagnitude(x.shape[1]), "hessian": Hessian(x.shape[1])}
    for statistic in found.values():
        statistic.add(x)
    return found


def objective(difference: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ difference.double().T).square().sum())


def term_of(kind: str, name: str, error: torch.Tensor, x: torch.Tensor, rank: int) -> torch.Tensor:
    made = make_algorithm(kind, name, {"rank": rank} | ({"bits": 16} if kind == "repair" else {}))
    return torch.from_numpy(made.term("m", error, rank, statistics(x)).product())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", ["none", "columns", "matrix"])
@pytest.mark.parametrize("seed", range(3))
def test_no_term_of_its_rank_is_closer(shape, cost, seed):
    """Eckart and Young: the least error is what the discarded singular values of E L make."""
    error, generator = weight(seed, shape), torch.Generator().manual_seed(seed)
    whole = torch.eye(shape[1])
    factor = None
    if cost == "columns":
        factor = torch.rand(shape[1], generator=generator) + 0.1
        whole = torch.diag(factor)
    elif cost == "matrix":
        factor = whole = torch.linalg.cholesky(
            torch.cov(torch.randn(shape[1], 4 * shape[1], generator=generator)).contiguous()
        )
    for rank in (1, 8, 31):
        found = torch.from_numpy(closest_term(error, rank, factor).product())
        discarded = torch.linalg.svdvals((error @ whole).double())[rank:].square().sum()
        left = ((error - found) @ whole).double().square().sum()
        assert float(left) == pytest.approx(float(discarded), rel=BF16_NOISE), (shape, cost, seed, rank)


@pytest.mark.parametrize("name", REPAIRS)
def test_an_error_of_low_rank_is_made_good_for(name):
    x = inputs(5, 64)
    planted = weight(1, (48, 3)) @ weight(2, (3, 64))
    found = term_of("repair", name, planted, x, 3)
    assert float((planted - found).norm() / planted.norm()) < 0.01
    assert not term_of("repair", name, torch.zeros(48, 64), x, 3).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_repaired_is_better_than_rounded_and_by_the_hessian_best(shape, seed):
    w, x = weight(seed, shape), inputs(seed, shape[1])
    for name in ("rtn", "gptq"):
        fit = make_algorithm("quantise", name, {})
        packed = fit.fit("m", w, parse_scheme("W3A16-g16").linear, statistics(x), lambda _: None).packed
        lost = w - torch.from_numpy(packed.dequantize())
        plain = objective(lost, x)
        left = {repair: objective(lost - term_of("repair", repair, lost, x, 8), x) for repair in REPAIRS}
        assert left["eora"] < left["lqer"] < plain, (shape, seed, name)
        more = objective(lost - term_of("repair", "eora", lost, x, 16), x)
        assert more < left["eora"], (shape, seed, name)


@pytest.mark.parametrize("seed", range(4))
def test_eight_bits_lose_next_to_nothing_and_so_twice_the_rank_is_better(seed):
    w, x = weight(seed, (96, 128)), inputs(seed, 128)
    packed = make_algorithm("quantise", "gptq", {}).fit(
        "m", w, parse_scheme("W3A16-g32").linear, statistics(x), lambda _: None
    )
    lost, left = w - torch.from_numpy(packed.packed.dequantize()), {}
    for bits, rank in ((16, 8), (8, 8), (8, 15)):
        made = make_algorithm("repair", "eora", {"rank": rank, "bits": bits})
        term = made.term("m", lost, rank, statistics(x))
        left[bits, rank] = objective(lost - torch.from_numpy(term.product()), x)
    assert left[8, 8] < 1.03 * left[16, 8], f"seed {seed}"
    assert low_rank_bytes(15, (96, 128), 8) < low_rank_bytes(8, (96, 128), 16)
    assert left[8, 15] < 0.9 * left[16, 8], f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_what_a_layer_hears_decides_what_is_kept(seed):
    w, x = weight(seed, (96, 64)), inputs(seed, 64)
    left = {name: objective(w - term_of("factorise", name, w, x, 16), x) for name in FACTORISERS}
    assert left["svd_llm"] < left["asvd"] < left["svd"]
    own = {name: float((w - term_of("factorise", name, w, x, 16)).square().sum()) for name in FACTORISERS}
    assert own["svd"] < min(own["asvd"], own["svd_llm"])


def test_ranks_end_at_the_break_even():
    for shape in ((64, 64), (48, 96), (7, 1000)):
        even = break_even(shape)
        assert even == pytest.approx(shape[0] * shape[1] / sum(shape))
        below, at = int(np.ceil(even)) - 1, int(np.ceil(even))
        assert below * sum(shape) < shape[0] * shape[1] <= at * sum(shape)
        assert make_algorithm("factorise", "svd", {"rank": below}).rank("m", shape) == below
        with pytest.raises(ConfigError, match="hold no fewer numbers"):
            make_algorithm("factorise", "svd", {"rank": at}).rank("m", shape)
        for share in (0.99, 0.5, 0.2):
            rank = make_algorithm("factorise", "svd", {"share": share}).rank("m", shape)
            assert 1 <= rank < even
            assert rank == 1 or rank * sum(shape) <= share * shape[0] * shape[1]


# -- in a recipe --------------------------------------------------------------------------------------------------


def quantise(algorithm: str = "gptq", scheme: str = "W3A16-g16") -> dict:
    return {"step": "quantise", "algorithm": algorithm, "scheme": scheme}


def repair(algorithm: str = "eora", rules: tuple = (), **options) -> dict:
    return {"step": "repair", "algorithm": algorithm, "options": options, "rules": list(rules)}


def factorise(algorithm: str = "svd_llm", rules: tuple = (), **options) -> dict:
    return {"step": "factorise", "algorithm": algorithm, "options": options, "rules": list(rules)}


SPARSIFY = {"step": "sparsify", "algorithm": "wanda", "options": {"pattern": "2:4"}}
DOWN = "model.layers.1.mlp.down_proj"


def recipe(*steps: dict):
    return recipe_from({"steps": list(steps), **FEW})


def effective(stored: Checkpoint, module: str) -> torch.Tensor:
    """fp32: what the terms of a linear make together."""
    up, down = (plain(stored.linear(f"{module}.low_rank.{name}")) for name in ("up", "down"))
    if not stored.quantization.terms[module].whole:
        return torch.from_numpy(up @ down)
    return torch.from_numpy(up @ down + plain(stored.linear(module)))


@pytest.mark.parametrize(
    ("steps", "whole"),
    [
        ((quantise("rtn"), repair("lqer", rank=4)), True),
        ((quantise(), repair("eora", rank=4)), True),
        ((quantise(), repair("eora", rank=6, bits=8)), True),
        ((quantise("rtn", "W8A8"), repair("eora", rank=2, bits=16)), True),
        ((SPARSIFY, quantise(), repair("eora", rank=4)), True),
        ((SPARSIFY, repair("eora", rank=4)), True),
        ((factorise("svd_llm", share=0.7),), False),
        ((factorise("svd", rank=5),), False),
    ],
)
def test_what_ran_is_what_is_read_back(tiny_model: Path, tmp_path: Path, text: str, steps: tuple, whole: bool):
    result = compress(tiny_model, tmp_path / "out", recipe(*steps), calibration_text=text)
    stored = Checkpoint.open(result.path, verify=True)
    assert result.output_bytes == stored.nbytes
    assert len(stored.quantization.terms) == 14
    assert all(terms.whole is whole for terms in stored.quantization.terms.values())
    source = load_model(result.path)
    for module, layer in result.layers.items():
        own = layer.get("repair", layer)
        if whole and module in stored.quantization.terms:
            assert stored.quantization.terms[module] == Terms(True, own["rank"])
            if "output_error" in own and "output_error" in layer and "sparsify" not in layer:
                assert own["output_error"] < layer["output_error"]
        elif not whole:
            assert own["rank"] < break_even(tuple(layer["shape"]))
            assert f"{module}.weight" not in stored.names()
    ids = np.arange(40, dtype=np.int32)[None] % 90
    read, made = (value_of(result.path, f"layers.1.mlp.{name}", ids) for name in ("activation", "down"))
    left = read @ effective(stored, DOWN).T
    assert float((made - left).norm() / left.norm()) < 1e-5
    before = torch.from_numpy(Checkpoint.open(tiny_model).tensor(f"{DOWN}.weight").astype(np.float32))
    own = result.layers[DOWN].get("repair", result.layers[DOWN])
    error = (effective(stored, DOWN) - before).square().sum() / before.square().sum()
    assert float(error) == pytest.approx(own["weight_error"], rel=1e-3)
    assert "Linnet alone" in (result.path / "README.md").read_text()
    kinds = [op.kind for op in source.program.ops]
    assert kinds.count("linear") == (3 if whole else 2) * 14


def test_a_repaired_model_is_nearer_its_original(tiny_model: Path, tmp_path: Path, text: str):
    ids = np.array([[7, 3, 60, 22, 41, 5, 9, 80, 33, 12, 64, 2]], np.int32)
    dense, errors = value_of(tiny_model, "logits", ids), {}
    for name, steps in {"plain": (quantise(),), "repaired": (quantise(), repair(rank=8))}.items():
        result = compress(tiny_model, tmp_path / name, recipe(*steps), calibration_text=text)
        errors[name] = float((value_of(result.path, "logits", ids) - dense).square().sum())
        blocks = [block["output_error"] for block in result.manifest["record"]["blocks"].values()]
        errors[f"{name} blocks"] = sum(blocks)
    assert errors["repaired"] < 0.8 * errors["plain"]
    assert errors["repaired blocks"] < errors["plain blocks"]


def test_rules_give_modules_other_ranks_or_none(tiny_model: Path, tmp_path: Path, text: str):
    rules = ({"match": DOWN, "options": {"rank": 9}}, {"match": "re:.*q_proj", "options": {"rank": 0}})
    result = compress(
        tiny_model, tmp_path / "out", recipe(quantise(), repair(rules=rules, rank=2)), calibration_text=text
    )
    terms = Checkpoint.open(result.path).quantization.terms
    assert terms[DOWN].rank == 9
    assert {item.rank for module, item in terms.items() if module != DOWN} == {2}
    assert len(terms) == 12
    rules = ({"match": DOWN, "options": {"share": 1}},)
    result = compress(tiny_model, tmp_path / "svd", recipe(factorise("svd", rules, share=0.5)))
    assert result.manifest["record"]["calibration"] is None
    assert f"{DOWN}.weight" in Checkpoint.open(result.path).names()
    assert len(Checkpoint.open(result.path).quantization.terms) == 13


@pytest.mark.parametrize("steps", [(quantise(), repair()), (factorise(),)])
def test_a_stopped_run_ends_in_the_same_bytes(fp32_model: Path, tmp_path: Path, text: str, steps: tuple):
    loud = with_loud_columns(fp32_model, tmp_path / "loud", 60)
    expected = compress(loud, tmp_path / "whole", recipe(*steps), calibration_text=text)
    for count in (12, 25):
        token = CancelToken()
        with suppress(Interrupted):
            compress(
                loud,
                tmp_path / "part",
                recipe(*steps),
                calibration_text=text,
                observer=StopAt(token, count),
                cancel=token,
            )
            pytest.fail(f"was not stopped at {count}")
    resumed = compress(loud, tmp_path / "part", recipe(*steps), calibration_text=text)
    assert resumed.resumed
    assert hashes(resumed.path) == hashes(expected.path)
    assert json.dumps(resumed.layers) == json.dumps(expected.layers)


@pytest.fixture(scope="module")
def repaired(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    target = tmp_path_factory.mktemp("repaired") / "out"
    options = {"options": {"rank": 3}, **FEW}
    return compress(tiny_model, target, make_recipe("W4A16-g16", "eora", **options), calibration_text=text).path


def test_nobody_else_reads_it_and_nothing_leaves_terms_out(repaired: Path):
    config = json.loads((repaired / "config.json").read_text())
    record = config["quantization_config"]
    assert config["model_type"] == "linnet"  # whoever goes by it stops here
    assert (record["quant_method"], record["version"]) == ("linnet", 3)  # so does a Linnet that knows no terms
    assert record["terms"][DOWN] == {"whole": True, "rank": 3}
    assert not list(repaired.glob("model*.safetensors"))
    model = identify(repaired, Checkpoint.open(repaired).schemes())
    assert model is not None
    for verdict in verdicts(model, str(repaired)):
        assert not verdict.loads
        assert "convert" not in (verdict.instead or "")
    with pytest.raises(UnsupportedError, match="sum of terms"):
        list_tensors(Checkpoint.open(repaired))
    with pytest.raises(ConfigError, match="quantised already"):
        quantised_at_load(load_model(repaired), "W8A16")
    with pytest.raises(UnsupportedError, match="already compressed"):
        check(repaired, recipe(factorise("svd")))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "tensors of the model that config.json does not account for"),
        ({DOWN: {"whole": True, "rank": 4}}, "has shape .* the config leads to"),
        ({DOWN: {"whole": True, "rank": 400}}, "a term of rank 400"),
        ({DOWN: {"whole": False, "rank": 0}}, "is nothing"),
        ({DOWN: {"rank": -1}}, "is nothing"),
        ({DOWN: {"rank": "3"}}, "rank and sparse are whole numbers"),
        ({DOWN: {"rank": 3, "hollow": 1}}, "must be an object with outliers, rank, sparse, whole"),
        ({"model.norm": {"rank": 3}}, "no linear of a layer"),
        ([DOWN], "must be an object"),
    ],
)
def test_terms_that_do_not_fit_the_tensors_are_refused(repaired: Path, tmp_path: Path, terms, message: str):
    for path in repaired.iterdir():
        if path.name not in ("config.json", "linnet_manifest.json"):
            (tmp_path / path.name).symlink_to(path)
    config = json.loads((repaired / "config.json").read_text())
    config["quantization_config"]["terms"] = terms
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((repair(), quantise()), r"step 2 \(quantise\) comes after repair, which leaves a term that it would"),
        ((repair(),), "no quantise step, so nothing would be compressed"),
        ((quantise(), repair(), repair()), "two repair steps"),
        ((factorise(), quantise()), "a quantise step, and factorise leaves no weight"),
        ((quantise(), repair(rank=-1)), "rank of a repair step is -1"),
        ((factorise(share=0),), "share of a factorise step is 0"),
        ((factorise(rank=0),), "rank of a factorise step is 0"),
        ((factorise("asvd", alpha=2),), "alpha of asvd is 2"),
        ((quantise(), repair("svd")), "algorithm of a repair step is 'svd'; accepted: lqer, eora"),
        ((quantise(), repair(rank=33)), "rank is 33; accepted is 0 to 32"),
        ((factorise(rank=21),), "accepted is a rank below"),
        ((quantise("autoround"), repair()), "autoround rounds a whole block at once"),
        ((quantise(), repair(rules=({"match": "lm_head", "options": {"rank": 1}},))), "'lm_head' of eora matches no"),
    ],
)
def test_senseless_steps_say_what_is_possible(tiny_model: Path, text: str, steps: tuple, message: str):
    with pytest.raises(ConfigError, match=message):
        check(tiny_model, recipe(*steps), text)
