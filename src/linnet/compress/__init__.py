# SPDX-License-Identifier: Apache-2.0
"""Compression: a recipe, one walk over the model, algorithms that see one layer at a time. Needs torch."""

from linnet.compress.algorithms import ALGORITHMS
from linnet.compress.job import Job, check
from linnet.compress.progress import CancelToken, Interrupted, Progress, ProgressEvent, Silent, cancel_on_signals
from linnet.compress.recipe import Calibration, Recipe, Rule, load_recipe, make_recipe, recipe_from
from linnet.compress.run import CompressResult, compress

__all__ = [
    "ALGORITHMS",
    "Calibration",
    "CancelToken",
    "CompressResult",
    "Interrupted",
    "Job",
    "Progress",
    "ProgressEvent",
    "Recipe",
    "Rule",
    "Silent",
    "cancel_on_signals",
    "check",
    "compress",
    "load_recipe",
    "make_recipe",
    "recipe_from",
]
