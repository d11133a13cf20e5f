# SPDX-License-Identifier: Apache-2.0
"""Which scheme every module gets: the quantise step's, its rules', group sizes checked or fitted."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from linnet.compress.recipe import DENSE, Recipe
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.models.load import ModelSource
from linnet.schemes.groups import check_columns
from linnet.schemes.layouts import stored_bytes
from linnet.schemes.packed_weight import plain_scheme
from linnet.schemes.presets import SchemePreset, parse_scheme
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.scheme_map import SchemeMap, check_shapes, fit_groups
from linnet.schemes.sparsity import TWO_OF_FOUR, SparsityPattern

MASK_BITS = 2
"""Codes of so many bits take as much in full as half of them and the mask."""

logger = logging.getLogger(__name__)


def resolve_schemes(model: ModelSource, recipe: Recipe, told: bool = True) -> dict[str, LinearScheme]:
    """Module -> scheme of everything that will get codes, group sizes checked or fitted (and told, in the log)."""
    spec, step = model.spec, recipe.quantise
    if step is None or step.scheme is None:
        return {}
    preset = parse_scheme(step.scheme)
    linear, head = preset.linear, preset.head
    if isinstance(step.group_size, int):
        weight = replace(linear.weight, granularity="group", group_size=step.group_size, block=None)
        linear = replace(linear, weight=weight)
        if head is not None and head.weight.group_size is not None:
            head = replace(head, weight=replace(head.weight, group_size=step.group_size))
    shapes, classes = model.scheme_targets()
    rules = [
        (rule.match, *((None, True) if rule.scheme == DENSE else _linear_of(parse_scheme(rule.scheme))))
        for rule in step.rules
        if rule.scheme is not None
    ]
    fixed_group = preset.fixed_group or isinstance(step.group_size, int)
    preset_rules = replace(preset, linear=linear, head=head).scheme_map(
        head=None if spec.tied_head else spec.head, embedding=spec.embedding
    )
    rules += [(pattern, scheme, fixed_group) for pattern, scheme in preset_rules.rules]
    resolved = SchemeMap(tuple((pattern, scheme) for pattern, scheme, _ in rules)).resolve(classes)
    fixed = SchemeMap(tuple((pattern, scheme if kept else None) for pattern, scheme, kept in rules)).resolve(classes)
    wished = {name: scheme for name, scheme in resolved.items() if step.group_size == "auto" or fixed[name] is None}
    fitted = fit_groups(wished, shapes)
    if told:
        _tell_groups(step.scheme, wished, fitted, shapes)
    resolved |= fitted
    check_shapes(resolved, shapes)
    chosen = {module: scheme for module, scheme in resolved.items() if scheme is not None}
    for module, scheme in chosen.items():
        check_columns(module, shapes[module][1], scheme.weight)
        stored_bytes(scheme, shapes[module])  # refuses what no layout can hold
    return chosen


def leave_out_zeros(
    schemes: Mapping[str, LinearScheme], patterns: Mapping[str, SparsityPattern]
) -> dict[str, LinearScheme]:
    """The schemes, of modules pruned 2:4 (``patterns``: of those that are pruned) without the zeros where codes allow
    it and it saves anything."""
    return {
        module: replace(scheme, weight=replace(scheme.weight, sparsity=TWO_OF_FOUR.name))
        if patterns.get(module) == TWO_OF_FOUR and scheme.weight.leaves_out_zeros and scheme.weight.bits > MASK_BITS
        else scheme
        for module, scheme in schemes.items()
    }


def plain_without_zeros(
    model: ModelSource, schemes: Mapping[str, LinearScheme], patterns: Mapping[str, SparsityPattern]
) -> dict[str, LinearScheme]:
    """How modules that are pruned 2:4 and get no codes are stored."""
    chosen = (module for module, pattern in patterns.items() if pattern == TWO_OF_FOUR and module not in schemes)
    return {module: plain_scheme(NAME_TO_NUMPY[model.checkpoint.info(f"{module}.weight").dtype]) for module in chosen}


def _linear_of(preset: SchemePreset) -> tuple[LinearScheme, bool]:
    return preset.linear, preset.fixed_group


def _tell_groups(
    name: str,
    wished: Mapping[str, LinearScheme | None],
    fitted: Mapping[str, LinearScheme | None],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """One line about the modules that get smaller groups than their scheme's."""
    changed: dict[tuple[int | None, int | None, int], list[str]] = {}
    for module, scheme in fitted.items():
        before = wished[module]
        if scheme is not None and before is not None and scheme != before:
            key = (before.weight.group_size, scheme.weight.group_size, shapes[module][1])
            changed.setdefault(key, []).append(module)
    total = sum(scheme is not None for scheme in fitted.values())
    parts = [
        f"{f'groups of {size}' if size else 'one scale per row'} instead of groups of {wish} in {len(modules)} of "
        f"{total} modules with {columns} columns ({modules[0]} …)"
        for (wish, size, columns), modules in changed.items()
    ]
    if parts:
        logger.warning("%s: %s", name, "; ".join(parts))
