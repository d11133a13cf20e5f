# SPDX-License-Identifier: Apache-2.0
"""The bundled tiny model and what it is measured with: data only, made by `tools/demo`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

TEXT_SEPARATOR = "---\n"


def _path(name: str) -> Path:
    # The package is installed as plain files, so the path outlives the context.
    with as_file(files(__name__) / name) as path:
        return path


def model_directory() -> Path:
    """Return the checkpoint directory of the bundled model (Hugging Face layout, bf16)."""
    return _path("model")


def questions_file() -> Path:
    """Return the questions, one JSON object a line; README.md in `tools/demo` describes the fields."""
    return _path("questions.jsonl")


def heldout_file() -> Path:
    """Return held-out stories and documents, separated by lines of `TEXT_SEPARATOR`."""
    return _path("heldout.txt")


def calibration_file() -> Path:
    """Return text like the model was trained on, question formats included, separated by `TEXT_SEPARATOR`."""
    return _path("calibration.txt")


def about_file() -> Path:
    """Return the JSON record of how the model was made: parameters, tokens, seed, training time."""
    return _path("about.json")
