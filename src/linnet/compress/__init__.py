# SPDX-License-Identifier: Apache-2.0
"""Compression: a recipe, one walk over the model, algorithms that see one layer at a time. Needs torch."""

from linnet.compress.algorithms import ALGORITHMS
from linnet.compress.calibration import WriteText
from linnet.compress.job import Job, check
from linnet.compress.progress import CancelToken, Interrupted, Observer, ProgressEvent, cancel_on_signals
from linnet.compress.recipe import Recipe, Rule, make_recipe, read_recipe, recipe_from
from linnet.compress.run import CompressResult, compress

__all__ = [
    "ALGORITHMS",
    "CancelToken",
    "CompressResult",
    "Interrupted",
    "Job",
    "Observer",
    "ProgressEvent",
    "Recipe",
    "Rule",
    "WriteText",
    "cancel_on_signals",
    "check",
    "compress",
    "make_recipe",
    "read_recipe",
    "recipe_from",
]
