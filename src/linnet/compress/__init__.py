# SPDX-License-Identifier: Apache-2.0
"""Compression: a recipe, one walk over the model, algorithms that see one layer at a time. Needs torch."""

from linnet.compress.calibration import WriteText
from linnet.compress.job import Job, check
from linnet.compress.mixed import MixedPlan, Uniform, mix
from linnet.compress.named import is_name, recipe_names, when_to_use
from linnet.compress.preflight import Estimate
from linnet.compress.progress import CancelToken, Interrupted, Observer, ProgressEvent, cancel_on_signals
from linnet.compress.reading import algorithm_names, make_recipe, read_recipe, recipe_from
from linnet.compress.recipe import Recipe, Rule, Step
from linnet.compress.run import CompressResult, check_target, compress

__all__ = [
    "CancelToken",
    "CompressResult",
    "Estimate",
    "Interrupted",
    "Job",
    "MixedPlan",
    "Observer",
    "ProgressEvent",
    "Recipe",
    "Rule",
    "Step",
    "Uniform",
    "WriteText",
    "algorithm_names",
    "cancel_on_signals",
    "check",
    "check_target",
    "compress",
    "is_name",
    "make_recipe",
    "mix",
    "read_recipe",
    "recipe_from",
    "recipe_names",
    "when_to_use",
]
