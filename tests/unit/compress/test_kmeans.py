# SPDX-License-Identifier: Apache-2.0
"""K-means tables: never worse than the uniform grid they start from, close to the optimum, by sensitivity where that is
known; stored, read and run as what they mean."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import logits
from walking import FEW

from linnet.backends.interface import Batch, Limits
from linnet.backends.reference.backend import ReferenceBackend
from linnet.compress import check, compress, make_recipe, recipe_from
from linnet.compress.clustering import cluster_rows, nearest
from linnet.compress.statistic import ColumnSquares
from linnet.compress.tables import make_algorithm
from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint
from linnet.models.at_load import quantised_at_load
from linnet.models.load import load_model
from linnet.schemes import PackedWeight, parse_scheme, quantize_weight
from linnet.schemes.layouts import CODEBOOK, stored_bytes

ROWS, COLUMNS = 16, 192
UP = "model.layers.1.mlp.up_proj"


def weight(seed: int, columns: int = COLUMNS, rows: int = ROWS) -> torch.Tensor:
    """Heavy tails, as trained weights have them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.exp(torch.randn(rows, columns, generator=generator))


def loudness(seed: int, columns: int = COLUMNS) -> torch.Tensor:
    return torch.exp(2 * torch.randn(columns, generator=torch.Generator().manual_seed(100 + seed)))


def errors(found: torch.Tensor, w: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """fp64 [rows]."""
    return ((found - w).double().square() * cost.double()).sum(dim=1)


def clustered(w: torch.Tensor, cost: torch.Tensor | None, bits: int) -> torch.Tensor:
    centres = cluster_rows(w, cost, bits)
    return centres.gather(1, nearest(w, centres).long())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_every_row_is_better_than_the_uniform_grid(bits, seed):
    w, cost = weight(seed), loudness(seed)
    for scheme in (f"W{bits}A16-channel", f"W{bits}A16-channel-asym"):
        uniform = torch.from_numpy(quantize_weight(w.numpy(), parse_scheme(scheme).linear).dequantize())
        ratios = errors(clustered(w, cost, bits), w, cost) / errors(uniform, w, cost)
        assert (ratios < 1).all(), f"seed {seed}, {scheme}"
        assert ratios.mean() < 0.6, f"seed {seed}, {scheme}"


def optimum(row: np.ndarray, cost: np.ndarray, count: int) -> float:
    """The least weighted squared error of ``count`` centres, by trying every division of the sorted row."""
    order = np.argsort(row)
    row, cost = row[order].astype(np.float64), cost[order].astype(np.float64)

    def of(start: int, stop: int) -> float:
        x, c = row[start:stop], cost[start:stop]
        return float((c * (x - (c * x).sum() / c.sum()) ** 2).sum())

    borders = itertools.combinations(range(1, len(row)), count - 1)
    return min(sum(of(a, b) for a, b in itertools.pairwise((0, *cut, len(row)))) for cut in borders)


def test_it_is_close_to_the_optimum():
    w, cost = weight(3, 14), loudness(3, 14)
    found = errors(clustered(w, cost, 2), w, cost)
    best = torch.tensor([optimum(row, cost.numpy(), 4) for row in w.numpy()])
    assert (found >= best * (1 - 1e-6)).all()
    assert float((found / best).median()) < 1.1
    assert float(found.sum() / best.sum()) < 1.3


def test_few_distinct_values_are_kept_exactly():
    w = torch.tensor([[1.0, 1, 1, 5, 5, -2, -2, -2], [0.0, 0, 0, 0, 0, 0, 0, 0], [3.0, 3, 3, 3, 3, 3, 3, 3]])
    assert torch.allclose(clustered(w, None, 2), w, atol=1e-6)
    assert torch.allclose(clustered(w, torch.zeros(8), 4), w, atol=1e-6)


@pytest.mark.parametrize("name", ["KMEANS4", "KMEANS2"])
@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_decides_where_values_stand(name, seed):
    linear, w = parse_scheme(name).linear, weight(seed)
    x = torch.randn(300, COLUMNS, generator=torch.Generator().manual_seed(seed)) * loudness(seed)
    squares = ColumnSquares(COLUMNS)
    squares.add(x)
    cost, found = x.square().mean(dim=0), {}
    for algorithm in ("kmeans", "squeezellm"):
        made = make_algorithm("quantise", algorithm, {})
        packed = made.fit("m", w, linear, {"squares": squares}, lambda _: None).packed
        assert sum(array.nbytes for array in packed.arrays.values()) == stored_bytes(linear, (ROWS, COLUMNS))
        found[algorithm] = torch.from_numpy(packed.dequantize())
    alike = torch.ones(COLUMNS)
    assert errors(found["squeezellm"], w, cost).sum() < errors(found["kmeans"], w, cost).sum(), f"seed {seed}"
    assert errors(found["kmeans"], w, alike).sum() < errors(found["squeezellm"], w, alike).sum(), f"seed {seed}"


def recipe(scheme: str, algorithm: str):
    return make_recipe(scheme, algorithm, **FEW)


@pytest.mark.parametrize(("scheme", "algorithm"), [("KMEANS4", "squeezellm"), ("KMEANS2", "kmeans")])
def test_what_is_written_is_read_and_run(tiny_model: Path, tmp_path: Path, text: str, scheme: str, algorithm: str):
    _native = pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")
    from linnet.backends.cpu.backend import CpuBackend

    result = compress(tiny_model, tmp_path / "out", recipe(scheme, algorithm), calibration_text=text)
    stored = Checkpoint.open(result.path, verify=True)
    assert result.output_bytes == stored.nbytes
    assert json.loads((result.path / "config.json").read_text())["model_type"] == "linnet"
    packed = stored.linear(UP)
    assert isinstance(packed, PackedWeight)
    assert packed.scheme == parse_scheme(scheme).linear
    table = packed.arrays[CODEBOOK].astype(np.float32)
    assert all(set(row) <= set(values) for row, values in zip(packed.dequantize(), table, strict=True))
    part = packed.take_rows([(3, 5), (9, 10)])
    assert np.array_equal(part.dequantize(), packed.dequantize()[[3, 4, 9]])

    limits = Limits(max_tokens=12, max_sequences=1, max_outputs=12, block_size=16, max_blocks_per_sequence=1)
    ids = np.arange(5, 17, dtype=np.int32)
    places = np.arange(12, dtype=np.int32)
    batch = Batch(
        ids, places, places, np.array([0, 12], np.int32), np.array([12], np.int32), np.zeros((1, 1), np.int32), places
    )
    found = {}
    for name, backend in (("torch", ReferenceBackend()), ("cpu", CpuBackend(threads=1))):
        model = backend.prepare(load_model(result.path), "exact", limits)
        model.execute(batch, model.allocate_states(1))
        found[name] = model.logits()
    assert np.abs(found["cpu"] - found["torch"]).max() < 1e-5 * np.abs(found["torch"]).max()


def test_pruned_weights_stay_zero(tiny_model: Path, tmp_path: Path, text: str):
    steps = [
        {"step": "sparsify", "algorithm": "wanda", "options": {"pattern": "2:4"}},
        {"step": "quantise", "algorithm": "squeezellm", "scheme": "KMEANS4"},
    ]
    result = compress(tiny_model, tmp_path / "out", recipe_from({"steps": steps, **FEW}), calibration_text=text)
    dense = Checkpoint.open(result.path).linear(UP).dequantize()
    assert ((dense.reshape(len(dense), -1, 4) == 0).sum(2) >= 2).all()


def test_tables_per_row_are_nearer_than_one_scale_per_row(tiny_model: Path, tmp_path: Path, text: str):
    expected, found = logits(tiny_model), {}
    for scheme, algorithm in (("KMEANS4", "squeezellm"), ("W4A16-channel", "rtn")):
        result = compress(tiny_model, tmp_path / algorithm, recipe(scheme, algorithm), calibration_text=text)
        found[algorithm] = float((logits(result.path) - expected).square().sum())
    assert found["squeezellm"] < found["rtn"]


@pytest.mark.parametrize(
    ("scheme", "algorithm", "message"),
    [
        ("KMEANS4", "gptq", "kmeans4 has learned tables; quantise it by kmeans or squeezellm"),
        ("KMEANS2", "rtn", "kmeans2 has learned tables"),
        ("W4A16", "kmeans", "int4 has no tables; quantise it by rtn or gptq"),
        ("KMEANS4-head8", "kmeans", "lm_head: int8 has no tables"),
        ("KMEANS4-g32", "kmeans", "a table per row, so groups"),
        ("KMEANS4-asym", "kmeans", "no zero point"),
    ],
)
def test_schemes_and_algorithms_that_do_not_go_together(tiny_model, text, scheme, algorithm, message):
    with pytest.raises(ConfigError, match=message):
        check(tiny_model, recipe(scheme, algorithm), text)


def test_tables_are_not_made_at_load(tiny_model: Path):
    with pytest.raises(ConfigError, match="tables of KMEANS4 are learned"):
        quantised_at_load(load_model(tiny_model), "KMEANS4")


def test_a_damaged_table_is_refused(tiny_model: Path):
    w = weight(1)
    packed = (
        make_algorithm("quantise", "kmeans", {}).fit("m", w, parse_scheme("KMEANS4").linear, {}, lambda _: None).packed
    )
    for name, change in ((CODEBOOK, lambda a: np.full_like(a, np.nan)), (CODEBOOK, lambda a: a[:, :8])):
        arrays = {**packed.arrays, name: change(packed.arrays[name])}
        with pytest.raises(CheckpointError, match=CODEBOOK):
            PackedWeight(packed.scheme, packed.shape, packed.layout, arrays).check("m")
