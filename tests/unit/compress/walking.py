# SPDX-License-Identifier: Apache-2.0
"""What tests of the walk share: a recipe's fields, a result's hashes, a value inside a model, a stop in between."""

from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.weights import WeightTable
from linnet.compress import CancelToken, ProgressEvent
from linnet.formats import Checkpoint
from linnet.models.load import load_model

FEW = {"calibration_rows": 6, "calibration_length": 64, "chunk_tokens": 128}


def hashes(path: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in Checkpoint.open(path, verify=True).manifest["tensors"].items()}


def value_of(path: Path, name: str, token_ids: np.ndarray) -> torch.Tensor:
    """A value of the whole program on whole sequences."""
    model = load_model(path)
    inputs = whole_sequence_inputs(torch.from_numpy(token_ids))
    table, memory = WeightTable(model.program, model), FunctionalMemory.of(model.program)
    with torch.no_grad():
        return run_ops(model.program, 0, len(model.program.ops), inputs, (name,), table, memory)[name]


class StopAt:
    """Cancels when a layer is reached for the n-th time."""

    def __init__(self, token: CancelToken, count: int) -> None:
        self.token, self.left = token, count

    def __call__(self, event: ProgressEvent) -> None:
        self.left -= 1
        if self.left == 0:
            self.token.cancel("the test")
