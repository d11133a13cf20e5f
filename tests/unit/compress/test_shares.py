# SPDX-License-Identifier: Apache-2.0
"""Shares by layer: who has outliers keeps more, the model loses as many as was asked."""

import re

import numpy as np
import pytest
import torch
from test_pruning import changed_copy
from walking import FEW, StopAt, hashes

from linnet.compress import CancelToken, Interrupted, compress, recipe_from
from linnet.compress.shares import BAND, offsets, outlier_share
from linnet.compress.tables import make_algorithm
from linnet.errors import ConfigError


def test_offsets_are_around_nothing_and_within_the_band():
    found = offsets([0.02, 0.05, 0.03, 0.02])
    assert sum(found) == pytest.approx(0)
    assert found[0] == found[3] > found[2] > found[1]
    assert max(found) - min(found) == pytest.approx(2 * BAND)
    assert offsets([0.1, 0.1]) == [0, 0]


def test_outliers_are_counted_over_all_linears_of_a_block():
    quiet, planted = torch.ones(10, 40), torch.ones(10, 60)
    planted[0, :7] = 50.0  # the mean of both is below 5
    assert outlier_share([quiet, planted]) == 7 / 1000
    assert outlier_share([]) == 0


def recipe(**options):
    step = {"step": "sparsify", "algorithm": "wanda", "options": {"pattern": "50%", **options}}
    return recipe_from({"steps": [step | {"rules": [OWN]}], **FEW})


OWN = {"match": "re:.*0.*v_proj", "options": {"pattern": "25%", "shares": "uniform"}}


def test_a_block_with_outliers_keeps_more(fp32_model, tmp_path, text):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][::4, ::8] *= 40

    model = changed_copy(fp32_model, tmp_path / "loud", change)
    whole = compress(model, tmp_path / "out", recipe(shares="outliers"), calibration_text=text)
    patterns = {name: layer["pattern"] for name, layer in whole.layers.items()}
    assert patterns["model.layers.0.self_attn.v_proj"] == "25%"  # its rule says so
    first, second = (
        {pattern for name, pattern in patterns.items() if f".{layer}." in name and pattern != "25%"} for layer in (0, 1)
    )
    assert (first, second) == ({"58%"}, {"42%"})
    mean = np.mean([layer["pruned"] for name, layer in whole.layers.items() if "mlp" in name])
    assert mean == pytest.approx(0.5, abs=0.02)
    for count in (2, 9):
        token = CancelToken()
        with pytest.raises(Interrupted):
            compress(
                model,
                tmp_path / "part",
                recipe(shares="outliers"),
                calibration_text=text,
                observer=StopAt(token, count),
                cancel=token,
            )
    resumed = compress(model, tmp_path / "part", recipe(shares="outliers"), calibration_text=text)
    assert hashes(resumed.path) == hashes(whole.path)


@pytest.mark.parametrize("pattern", ["2:4", "dense"])
def test_they_are_shares_of_a_percentage(pattern):
    said = re.escape(f"shares by outliers need a percentage such as 50%; the pattern is {pattern}")
    with pytest.raises(ConfigError, match=said):
        make_algorithm("sparsify", "esparse", {"pattern": pattern, "shares": "outliers"})
