# SPDX-License-Identifier: Apache-2.0
"""Layer-by-layer distillation: every block's error below that of rounding, what runs is packed, the same every time."""

import numpy as np
import pytest
import torch
from tiny_llama import write_tiny_llama
from walking import FEW, StopAt, hashes

from linnet.compress import CancelToken, Interrupted, compress, make_recipe
from linnet.compress.algorithms.lkd import TrainedWeight
from linnet.compress.statistic import RowSample
from linnet.compress.tables import make_algorithm
from linnet.errors import ConfigError
from linnet.schemes.presets import parse_scheme

OPTIONS = {"iterations": 40, "batch": 2}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_block_loses_less_than_by_rounding(text, tmp_path, seed):
    model = write_tiny_llama(tmp_path / "model", dtype="bfloat16", spread=0.2, seed=seed)
    settings = {"calibration_rows": 8, "calibration_length": 64, "seed": seed}
    errors = {}
    for name, options in (("rounded", {"iterations": 1, "rate": 1e-9}), ("distilled", {"iterations": 80})):
        recipe = make_recipe("W3A16-g16", "lkd", options=options, **settings)
        result = compress(model, tmp_path / name, recipe, calibration_text=text)
        errors[name] = [block["output_error"] for block in result.manifest["record"]["blocks"].values()]
    assert len(errors["distilled"]) == 2
    assert np.all(np.array(errors["distilled"]) < 0.8 * np.array(errors["rounded"])), errors


@pytest.mark.parametrize("name", ["W4A16-g32", "W3A16-g16-asym", "NF4-g32", "FP8", "TERNARY-g32"])
def test_what_is_run_is_what_is_packed(name):
    generator = torch.Generator().manual_seed(0)
    sample, weight = RowSample(64), torch.randn(24, 64, generator=generator) * 0.1
    sample.add(torch.randn(64, 64, generator=generator))
    trained = TrainedWeight(weight, parse_scheme(name).linear, {"sample": sample})
    before = trained.fitted({}).packed.dequantize()
    target = torch.randn(weight.shape, generator=generator)
    for _ in range(5):
        trained.descend(target, 0.2)
    packed = trained.fitted({}).packed.dequantize()
    assert torch.equal(trained.weight(), torch.from_numpy(packed))
    assert (before != packed).any()
    trained.go_back()
    assert (trained.fitted({}).packed.dequantize() == before).all()


def test_interrupted_or_repeated_it_is_the_same(tiny_model, text, tmp_path):
    recipe = make_recipe("W4A8-g16", "lkd", options=OPTIONS, **FEW)
    whole = compress(tiny_model, tmp_path / "whole", recipe, calibration_text=text)
    assert max(layer["best_iteration"] for name, layer in whole.layers.items() if ".layers." in name) > 0
    token = CancelToken()
    stop = StopAt(token, 60)
    with pytest.raises(Interrupted):
        compress(tiny_model, tmp_path / "again", recipe, calibration_text=text, cancel=token, observer=stop)
    again = compress(tiny_model, tmp_path / "again", recipe, calibration_text=text)
    assert again.resumed
    assert hashes(whole.path) == hashes(again.path)


def test_options_are_checked():
    for options, message in (
        ({"iterations": 0}, "iterations of lkd is 0; accepted is 1 to 100000"),
        ({"rate": 2.0}, "rate of lkd is 2.0; accepted is more than 0, at most 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_algorithm("quantise", "lkd", options)
