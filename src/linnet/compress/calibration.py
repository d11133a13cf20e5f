# SPDX-License-Identifier: Apache-2.0
"""Calibration rows of a recipe: the text, the tokenizer of the checkpoint, the windows."""

from importlib.resources import files
from pathlib import Path

from linnet.compress.recipe import Recipe
from linnet.errors import CheckpointError, ConfigError
from linnet.text.files import read_corpus
from linnet.text.rows import CalibrationRows, calibration_rows
from linnet.text.tokenizer import Tokenizer

DEFAULT_LENGTH_TOKENS = 512


def read_rows(
    recipe: Recipe, text: str | None, model: Path, max_positions: int, vocabulary_size: int
) -> CalibrationRows:
    """Rows int32 [rows, length] for the checkpoint at ``model``: of the recipe's text, else of ``text``, else bundled.

    ConfigError: the text is missing, too short, or rows are longer than the model's context.
    """
    length = recipe.calibration_length or min(DEFAULT_LENGTH_TOKENS, max_positions)
    if length > max_positions:
        raise ConfigError(
            f"calibration_length is {length}; this model reaches {max_positions} tokens",
            settings=["calibration_length"],
        )
    if recipe.calibration is not None or text is None:
        text = _read_text(recipe.calibration)
    tokenizer = Tokenizer.from_directory(model)
    name = recipe.calibration or "the calibration text"
    rows = calibration_rows(tokenizer, text, recipe.calibration_rows, length, recipe.seed, name)
    greatest = int(rows.token_ids.max())
    if greatest >= vocabulary_size:
        raise CheckpointError(f"{model}: the tokenizer gives id {greatest}; the embedding has {vocabulary_size} rows")
    return rows


def _read_text(name: str | None) -> str:
    bundled = Path(str(files("linnet.demo").joinpath("calibration.txt")))
    return read_corpus(bundled if name is None else Path(name), "calibration text")
