# SPDX-License-Identifier: Apache-2.0
"""Weights that stand apart from their row's table: fewer errors for their bytes; stored, priced and run as what they
mean."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import logits
from safetensors.torch import load_file, save_file
from walking import FEW

from linnet.compress import check, compress, make_recipe
from linnet.compress.disk import disk_need
from linnet.compress.statistic import ColumnSquares
from linnet.compress.tables import make_algorithm
from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.schemes import parse_scheme, quantize_weight
from linnet.schemes.terms import SPARSE_COLUMNS, SPARSE_VALUES, Sparse

ROWS, COLUMNS = 24, 200


def heavy(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, COLUMNS, generator=generator) * torch.exp(torch.randn(ROWS, COLUMNS, generator=generator))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_less_is_lost_than_by_the_table_alone_and_by_the_uniform_grid(bits: int, seed: int):
    """By the sum that the fit weighs, every output row."""
    w, squares = heavy(seed), ColumnSquares(COLUMNS)
    squares.add(torch.randn(300, COLUMNS) * torch.exp(torch.randn(COLUMNS)))
    scheme, cost = parse_scheme(f"KMEANS{bits}").linear, squares.root_mean.square()

    def lost(share: float) -> torch.Tensor:
        made = make_algorithm("quantise", "squeezellm", {"sparse": share})
        fitted = made.fit("m", w, scheme, {"squares": squares}, lambda _: None)
        assert (fitted.sparse is None) == (share == 0)
        missing = torch.from_numpy(fitted.whole()) - w
        own = float(missing.square().sum() / w.square().sum())
        assert abs(fitted.weight_error - own) < 1e-6
        return (missing.square() * cost).sum(dim=1)

    uniform = torch.from_numpy(quantize_weight(w.numpy(), parse_scheme(f"W{bits}A16-channel").linear).dequantize())
    alone, apart = lost(0.0), lost(0.01)
    assert ((uniform - w).square() * cost).sum(dim=1).gt(alone).all()
    assert (apart < alone).all()
    assert apart.sum() < 0.8 * alone.sum()


def test_pruned_weights_stay_zero():
    w = heavy(1)
    kept = torch.rand(w.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    made = make_algorithm("quantise", "kmeans", {"sparse": 0.02})
    fitted = made.fit("m", w * kept, parse_scheme("KMEANS2").linear, {}, lambda _: None, kept)
    assert not fitted.whole()[~kept.numpy()].any()


def test_rows_of_the_term_are_rows_of_its_sum():
    values = np.arange(6, dtype=np.float32).reshape(3, 2).astype("float32")
    term = Sparse(values, np.array([[0, 3], [1, 2], [0, 1]], np.int32))
    whole, part = np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32)
    term.add_to(whole)
    term.add_to(part, [(2, 3), (0, 1)])
    assert np.array_equal(part, whole[[2, 0]])
    assert whole[1].tolist() == [0, 2, 3, 0]


@pytest.fixture(scope="module")
def made(fp32_model: Path, tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    recipe = make_recipe("KMEANS2", "squeezellm", options={"sparse": 0.05}, **FEW)
    path = tmp_path_factory.mktemp("sparse") / "out"
    result = compress(fp32_model, path, recipe, calibration_text=text)
    assert result.output_bytes == disk_need(check(fp32_model, recipe, text)).output == Checkpoint.open(path).nbytes
    return path


def test_what_ran_is_what_is_written(made: Path, fp32_model: Path, tmp_path: Path):
    """The result gives what the original does with the same weights in it, written dense."""
    checkpoint, source = Checkpoint.open(made, verify=True), load_model(fp32_model)
    assert checkpoint.quantization.terms
    changed = {}
    for module, terms in checkpoint.quantization.terms.items():
        whole = checkpoint.linear(module).dequantize()
        values, columns = (checkpoint.tensor(f"{module}.{half}.weight") for half in (SPARSE_VALUES, SPARSE_COLUMNS))
        assert values.shape == columns.shape == (len(whole), terms.sparse)
        before = whole.copy()
        Sparse(values, columns).add_to(whole)
        assert (whole != before).any()
        changed[f"{module}.weight"] = whole
    assert set(changed) == {info.tensor for info in source.linears() if info.kind == "linear"}
    ids = np.arange(3, 35, dtype=np.int32)[None]
    dense = tmp_path / "dense"
    shutil.copytree(fp32_model, dense)
    tensors = load_file(dense / "model.safetensors") | {name: torch.from_numpy(each) for name, each in changed.items()}
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(logits(made, ids), logits(dense, ids), rtol=1e-4, atol=1e-4)


def test_damage_is_said_in_a_sentence(made: Path, tmp_path: Path):
    for sparse, message in (
        (10_000, "sparse term of 10000 weights"),
        (-1, "sparse term of -1"),
        ("2", "whole numbers"),
    ):
        config = json.loads((made / "config.json").read_text())
        broken = tmp_path / f"broken{sparse}"
        broken.mkdir()
        for file in made.iterdir():
            (broken / file.name).symlink_to(file)
        first = next(iter(config["quantization_config"]["terms"].values()))
        first["sparse"] = sparse
        (broken / "config.json").unlink()
        (broken / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message):
            load_model(Checkpoint.open(broken, verify=False))


def test_a_share_that_cannot_be():
    with pytest.raises(ConfigError, match=r"sparse is 0\.6; accepted is 0 to 0\.5"):
        make_algorithm("quantise", "kmeans", {"sparse": 0.6})
