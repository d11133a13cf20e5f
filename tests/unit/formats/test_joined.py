# SPDX-License-Identifier: Apache-2.0
"""Tensors in parts are shown as one; parts that do not make one are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from linnet.errors import CheckpointError
from linnet.formats import Checkpoint
from linnet.formats.joined import Joined

RULES = (Joined("model.layers.{layer}.norm.norms.{part}.weight", "model.layers.{layer}.norm.weight"),)


def opened(directory: Path, parts: dict[int, np.ndarray]) -> Checkpoint:
    tensors = {f"model.layers.0.norm.norms.{part}.weight": values for part, values in parts.items()}
    save_file(tensors | {"lm_head.weight": np.ones((2, 2), np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({}))
    return Checkpoint.open(directory).arranged(RULES)


def test_parts_lie_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    parts = {part: np.full(3, part, np.float32) for part in range(11)}
    found = opened(tmp_path, parts)
    assert set(found.names()) == {"lm_head.weight", "model.layers.0.norm.weight"}
    assert found.info("model.layers.0.norm.weight").shape == (11, 3)
    assert np.array_equal(found.tensor("model.layers.0.norm.weight"), np.repeat(np.arange(11.0), 3).reshape(11, 3))


@pytest.mark.parametrize(
    "parts",
    [
        {0: np.ones(3, np.float32), 999_999_999: np.ones(3, np.float32)},
        {0: np.zeros(3, np.float32), 2: np.zeros(3, np.float32)},
        {0: np.zeros(3, np.float32), 1: np.zeros(4, np.float32)},
    ],
    ids=["most are missing", "one is missing", "one is longer"],
)
def test_parts_that_do_not_make_a_whole_are_refused(parts: dict[int, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"parts of model\.layers\.0\.norm\.weight"):
        opened(tmp_path, parts)
