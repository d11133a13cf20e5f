# SPDX-License-Identifier: Apache-2.0
"""What is different about the linears of experts: each hears only the tokens that were sent to it."""

from collections.abc import Mapping, Sequence

from linnet.compress.recipe import Recipe
from linnet.errors import UnsupportedError
from linnet.models.inventory import LinearInfo
from linnet.program.traverse import tapped
from linnet.schemes.scheme import LinearScheme

FITS = ("rtn", "hqq")
"""Algorithms that give experts their codes."""
STEPS = ("quantise", "smooth", "calibrate")
"""Steps that leave experts whole, or give them codes; smoothing concerns linears that every token reads."""


def is_expert(info: LinearInfo) -> bool:
    """Whether a linear reads the rows of some tokens alone."""
    return tapped(info.tap) != info.tap


def check_experts(recipe: Recipe, schemes: Mapping[str, LinearScheme], linears: Sequence[LinearInfo]) -> None:
    """UnsupportedError for what nothing here does to a model of experts."""
    experts = [info.module for info in linears if is_expert(info)]
    if not experts:
        return
    for step in recipe.steps:
        if step.step not in STEPS:
            raise UnsupportedError(
                f"{experts[0]} is an expert's; a model of experts takes the steps {', '.join(STEPS)}"
            )
    coded = [module for module in experts if module in schemes]
    quantise = recipe.quantise
    if coded and quantise is not None and quantise.algorithm not in FITS:
        raise UnsupportedError(
            f"{coded[0]} is an expert's; experts get their codes by {', '.join(FITS)}, not by {quantise.algorithm} "
            "(a rule with scheme: dense leaves them as they are)"
        )
    for module in coded:
        given = schemes[module].input
        if given is not None and not given.dynamic:
            raise UnsupportedError(f"{module} is an expert's; its activations take dynamic scales, not static ones")
