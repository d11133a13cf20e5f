# SPDX-License-Identifier: Apache-2.0
"""Which modules and blocks lost most: what a person asks first of a finished run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """``error`` relative to the module's output on the calibration rows, or to its weight where no rows ran."""

    module: str
    error: float
    of_output: bool


def worst_modules(layers: Mapping[str, Mapping[str, Any]], count: int) -> tuple[Loss, ...]:
    """The ``count`` modules of a manifest's ``layers`` that lost most, the worst first.

    Errors of outputs and of weights are not compared: outputs come first, and weights are asked where none is known.
    """
    last = {module: {**layer, **layer.get("repair", {})} for module, layer in layers.items()}
    outputs = [Loss(name, layer["output_error"], True) for name, layer in last.items() if "output_error" in layer]
    weights = [Loss(name, layer["weight_error"], False) for name, layer in last.items() if "weight_error" in layer]
    return tuple(sorted(outputs or weights, key=lambda loss: -loss.error)[:count])


def block_errors(blocks: Mapping[str, Mapping[str, float]]) -> tuple[Sequence[str], Sequence[float]]:
    """Names and errors of a manifest's ``blocks``, in the order of the model."""
    return tuple(blocks), tuple(block["output_error"] for block in blocks.values())
