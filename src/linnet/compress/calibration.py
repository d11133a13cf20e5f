# SPDX-License-Identifier: Apache-2.0
"""Calibration rows of a recipe: which text, the tokenizer of the checkpoint, the windows.

The text is the recipe's; else the caller's; for the bundled model the town it was made for; else what the model itself
writes, which takes an engine that this room does not know: the caller hands over who writes.
"""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np

from linnet import demo
from linnet.compress.recipe import Recipe
from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint
from linnet.text.corpora import read_text_of
from linnet.text.files import read_corpus
from linnet.text.own import OwnText
from linnet.text.rows import CalibrationRows, calibration_rows, document_rows
from linnet.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_LENGTH_TOKENS = 512
BUNDLED_NAME = "the bundled town's text"


class WriteText(Protocol):
    """Has the model in ``directory`` write ``rows`` rows of ``length`` tokens (``linnet.api.own_text``)."""

    def __call__(self, directory: Path, rows: int, length: int, seed: int, /) -> OwnText: ...


def row_length(recipe: Recipe, max_positions: int) -> int:
    """Tokens of a calibration row. ConfigError: a single one, or longer than the model's context."""
    length = recipe.calibration_length or min(DEFAULT_LENGTH_TOKENS, max_positions)
    if length > max_positions:
        reason = f"this model reaches {max_positions} tokens"
    elif length < 2:
        reason = "accepted is 2 or more"
    else:
        return length
    raise ConfigError(f"calibration_length is {length}; {reason}", settings=["calibration_length"])


def read_rows(
    recipe: Recipe,
    text: str | None,
    checkpoint: Checkpoint,
    length: int,
    vocabulary_size: int,
    write_text: WriteText | None = None,
) -> CalibrationRows:
    """Rows int32 [rows, length] for ``checkpoint``; see the module for the text they are of.

    ConfigError: no text, or one that is too short or cannot be read.
    """
    model = checkpoint.path
    if recipe.calibration is not None:
        rows = _windows(recipe, None, recipe.calibration, model, length)
    elif text is not None:
        rows = _windows(recipe, text, "the calibration text", model, length)
    elif demo.is_bundled_model(checkpoint):
        rows = _bundled(recipe, model, length)
    elif write_text is not None:
        rows = write_text(model, recipe.calibration_rows, length, recipe.seed).rows()
    else:
        raise ConfigError(
            f"{recipe.name} needs a calibration text and none is given: name a file (calibration), or let the "
            "model write its own (write_text)",
            settings=["calibration"],
        )
    greatest = int(rows.token_ids.max())
    if greatest >= vocabulary_size:
        raise CheckpointError(f"{model}: the tokenizer gives id {greatest}; the embedding has {vocabulary_size} rows")
    return rows


def without_repeats(rows: CalibrationRows) -> tuple[CalibrationRows, int]:
    """The rows but for those that are one token over and over (after the first one, which may be BOS), and how many
    these were. ConfigError if no row is left."""
    ids = rows.token_ids
    body = ids[:, 1:] if ids.shape[1] > 2 else ids
    repeats = (body == body[:, :1]).all(axis=1)
    count = int(repeats.sum())
    if count == 0:
        return rows, 0
    if count == len(ids):
        raise ConfigError(
            f"every row of {rows.name} is one token over and over, which says nothing about the model: another text is "
            "needed (calibration)",
            settings=["calibration"],
        )
    logger.warning("%d of %d calibration rows are one token over and over, and are left out", count, len(ids))
    return rows.take(np.flatnonzero(~repeats).tolist()), count


def _bundled(recipe: Recipe, model: Path, length: int) -> CalibrationRows:
    """Of the town's text, whose documents were read apart when the model was trained, and are when it is measured."""
    documents = read_corpus(demo.calibration_file()).split(demo.TEXT_SEPARATOR)
    return document_rows(Tokenizer.open(model), documents, recipe.calibration_rows, length, recipe.seed, BUNDLED_NAME)


def _windows(recipe: Recipe, text: str | None, name: str, model: Path, length: int) -> CalibrationRows:
    """Of ``text``; without one, of the file or directory ``name``, whose chats go through the model's template."""
    tokenizer = Tokenizer.open(model)
    if text is None:
        text = read_text_of(Path(name), "calibration text", lambda: tokenizer.templates)
    rows = calibration_rows(tokenizer, text, recipe.calibration_rows, length, recipe.seed, name)
    count = len(rows.token_ids)
    alike = count - len(np.unique(rows.token_ids, axis=0))
    if 2 * alike >= count:  # a few cost nothing
        logger.warning("%d of %d calibration rows are the same as another and tell nothing new", alike, count)
    return rows
