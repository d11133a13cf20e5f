# SPDX-License-Identifier: Apache-2.0
"""The bundled tiny model and what it is measured with: data only, made by `tools/demo`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

MODEL_DIGEST = "58b4d8483871b48adb8e56c4c85b3e1f09cddb003367e8f332dc62eac1363066"
"""``Checkpoint.digest`` of the bundled model: by its content it is known, wherever it lies."""

TEXT_SEPARATOR = "---\n"


def _path(name: str) -> Path:
    # The package is installed as plain files, so the path outlives the context.
    with as_file(files(__name__) / name) as path:
        return path


class Content(Protocol):
    """What is asked of a checkpoint to know it (``formats.Checkpoint``)."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def manifest(self) -> Mapping[str, Any] | None: ...

    def digest(self) -> str: ...


def is_bundled_model(checkpoint: Content) -> bool:
    """Whether this is the bundled model, or was compressed from it."""
    if checkpoint.manifest is not None:
        parts = checkpoint.manifest.get("record", {}).get("fingerprint")
        source = parts.get("source") if isinstance(parts, dict) else None
        return source == MODEL_DIGEST or checkpoint.digest() == MODEL_DIGEST
    config = json.loads((model_directory() / "config.json").read_text(encoding="utf-8"))
    # Only a model of the same shape is read whole for its digest.
    return dict(checkpoint.config) == config and checkpoint.digest() == MODEL_DIGEST


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
