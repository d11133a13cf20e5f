# SPDX-License-Identifier: Apache-2.0
"""What is different about the linears of experts: each hears only the tokens that were sent to it."""

import logging
from collections.abc import Mapping, Sequence

from linnet.compress.recipe import Recipe
from linnet.compress.statistic import Statistic
from linnet.errors import UnsupportedError
from linnet.models.inventory import LinearInfo
from linnet.program.attributes import Experts
from linnet.program.program import Program
from linnet.program.traverse import declarations, expert_of, tapped
from linnet.schemes.scheme import LinearScheme

logger = logging.getLogger(__name__)

FITS = ("rtn", "hqq", "gptq")
"""Algorithms that give experts their codes."""
STEPS = ("quantise", "smooth", "calibrate")
"""Steps that leave experts whole, or give them codes; smoothing concerns linears that every token reads."""


LEAST_TOKENS = 64
"""An expert that hears fewer of the calibration tokens is rounded to nearest: what so few say of a second derivative is
mostly what they are themselves."""
_SHOWN = 8


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


def share_of(program: Program, tap: str) -> float:
    """Of all tokens the share that a tap hears: of an expert's, if all are chosen alike."""
    value = tapped(tap)
    if value == tap:
        return 1.0
    op = next(op for op in program.ops if isinstance(op.attributes, Experts) and op.inputs[0] == value)
    assert isinstance(op.attributes, Experts)
    return int(declarations(program)[op.outputs[0]].shape[1]) / op.attributes.experts


def warn_of_unheard(
    segment: str, linears: Sequence[LinearInfo], statistics: Mapping[str, Mapping[str, Statistic]]
) -> None:
    """Say once a block which experts too few of the calibration tokens were sent to."""
    first = {expert_of(info.tap): info.tap for info in reversed(linears) if is_expert(info)}
    heard = {
        expert: max(statistic.rows for statistic in statistics[tap].values())
        for expert, tap in sorted(first.items())
        if statistics.get(tap)
    }
    few = {expert: tokens for expert, tokens in heard.items() if tokens < LEAST_TOKENS}
    if few:
        shown = ", ".join(f"{expert} ({tokens})" for expert, tokens in list(few.items())[:_SHOWN])
        more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
        logger.warning(
            "%s: %d of %d experts heard fewer than %d of the calibration tokens and are rounded to nearest: %s%s",
            *(segment, len(few), len(heard), LEAST_TOKENS, shown, more),
        )
