# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: bits for each linear so that the result is at most so large; what comes out is a recipe with rules.

Linears that read one value (q, k and v; gate and up) get the same bits, since other programs run them as one. What each
costs at how many bits says sensitivity.py, on the model as it is after a recipe's rotations, fitted as the recipe says;
what smoothing spares is not foreseen. Costs are added up, and knapsack.py finds the least sum. They are what the
calibration text makes of them; where a mixture promises little, another text may want another one: then one scheme
everywhere is kept.
"""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from linnet.compress.algorithm import BlockFit, Fit
from linnet.compress.algorithms.gptq import Gptq, GptqOptions
from linnet.compress.calibration import WriteText, read_rows, row_length, without_repeats
from linnet.compress.disk import result_bytes
from linnet.compress.experts import is_expert
from linnet.compress.job import check_source
from linnet.compress.knapsack import Choice, choose
from linnet.compress.progress import (
    CancelToken,
    Interrupted,
    Observer,
    ProgressEvent,
    cancel_on_signals,
)
from linnet.compress.recipe import Recipe, Rule
from linnet.compress.resolve import resolve_schemes
from linnet.compress.sensitivity import Wanted, sensitivities
from linnet.compress.steps import Steps, build_steps
from linnet.errors import ConfigError, UnsupportedError
from linnet.formats import Checkpoint, resolve_model
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource, load_model
from linnet.process_memory import peak_bytes
from linnet.schemes.layouts import stored_bytes
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme
from linnet.text.rows import CalibrationRows

FAMILIES: tuple[tuple[str, ...], ...] = (("W2A16", "W3A16", "W4A16", "W8A16"), ("W4A8", "W8A8"))
"""Schemes between which a model can be mixed, smallest first."""
DRAWN_TOKENS, HEARD_TOKENS = 4096, 8192
"""Of the calibration rows: on which KL is measured, and which the fits hear. (On rows that alone were heard, a fit
looks better than it is, the more so the more columns it has.)"""

_IN_A_LIST = re.compile(r"(.*?\.)(\d+)(\..*)")
"""A module of a list of blocks: what stands before its number, the number, what stands behind."""

LEAST_GAIN = 0.2
"""Of the KL of the best scheme everywhere that fits: less is within what another text moves. (Bundled model, GPTQ, its
two texts: of 0.33 promised came 0.09; of 0.08, a loss of 0.10.)"""

Schemes = Mapping[str, LinearScheme]
"""Module -> scheme, of everything that gets codes."""


@dataclass(frozen=True)
class Uniform:
    """One scheme everywhere: how large the result is, and the KL that is foreseen (nats per token)."""

    scheme: str
    bytes: int
    kl: float


@dataclass(frozen=True)
class MixedPlan:
    """``recipe`` has rules for the linears that get another scheme than its own. ``bytes`` of the whole result, at most
    (exactly but for algorithms whose terms the rows decide, algorithm.MakesTerms).

    ``kl``: foreseen, nats per token; ``modules``: scheme -> how many linears get it.
    """

    recipe: Recipe
    bytes: int
    kl: float
    modules: Mapping[str, int]
    uniform: tuple[Uniform, ...]


def mix(
    source: str | Path,
    recipe: Recipe,
    budget: Callable[[ModelSource], int],
    *,
    calibration_text: str | None = None,
    write_text: WriteText | None = None,
    observer: Observer | None = None,
    cancel: CancelToken | None = None,
) -> MixedPlan:
    """Decide the bits of every linear that no rule of the recipe gives a scheme.

    ``budget``: the bytes that all tensors of the result together may have, of the model as it is opened. The quantise
    step's scheme names the family (FAMILIES), groups and what becomes of the head. The same arguments on the same
    machine give the same recipe. ConfigError: a scheme of no family, a budget that the fewest bits exceed.
    """
    names, steps = candidates(recipe), build_steps(recipe)
    if steps.prunes:
        raise ConfigError(
            "budget mixes bits of a model whose shapes are known; prune first, then compress the result",
            settings=["budget"],
        )
    original = model = load_model(Checkpoint.open(resolve_model(source), verify=False))
    check_source(model)
    for transform in steps.model_transforms:
        model = transform.prepare(model)
    inner = [info.module for info in model.linears() if info.kind == "linear"]
    options = {
        name: resolve_schemes(model, with_rules(recipe, dict.fromkeys(inner, name)), told=False) for name in names
    }
    groups = _groups(model, options)
    sizes = [[_bytes(group, options[name], steps) for name in names] for group in groups]
    first = options[names[0]]
    steps = steps.on(first, model.linears())
    steps.check_tables(first, model.spec.embedding)
    fixed = result_bytes(model, first, steps) - sum(each[0] for each in sizes)
    allowed = budget(original)
    _check_budget(allowed, fixed + sum(map(min, sizes)), names[0])
    rows = _rows(recipe, original, calibration_text, write_text)
    model = replace(model, checkpoint=original.checkpoint)
    for transform in steps.model_transforms:
        model = transform.apply(model, first, recipe.seed)
    wanted = [
        Wanted(info, [options[name][info.module] for name in names], _fit_of(steps, info))
        for group in groups
        for info in group
    ]
    costs = _measure(model, rows, wanted, recipe.seed, observer, cancel)
    table = [
        [Choice(size, sum(costs[info.module][place] for info in group)) for place, size in enumerate(of_group)]
        for group, of_group in zip(groups, sizes, strict=True)
    ]
    chosen = _chosen(table, allowed - fixed)
    by_name = {info.module: names[place] for group, place in zip(groups, chosen, strict=True) for info in group}
    foreseen = [_total(table, [place] * len(table)) for place in range(len(names))]
    cost, size = _total(table, chosen)
    return MixedPlan(
        with_rules(recipe, by_name),
        fixed + size,
        cost,
        {name: count for name in names if (count := list(by_name.values()).count(name))},
        tuple(Uniform(name, fixed + size, cost) for name, (cost, size) in zip(names, foreseen, strict=True)),
    )


def _rows(recipe: Recipe, model: ModelSource, text: str | None, write_text: WriteText | None) -> CalibrationRows:
    """As many calibration rows as are heard."""
    length = row_length(recipe, model.spec.max_positions)
    rows = read_rows(recipe, text, model.checkpoint, length, model.spec.vocabulary_size, write_text)
    rows, _ = without_repeats(rows)
    return rows.take(range(min(len(rows), max(1, HEARD_TOKENS // length))))


def _total(table: Sequence[Sequence[Choice]], places: Sequence[int]) -> tuple[float, int]:
    """Cost and bytes of a choice for every group."""
    picked = [group[place] for group, place in zip(table, places, strict=True)]
    return sum(choice.cost for choice in picked), sum(choice.bytes for choice in picked)


def _chosen(table: Sequence[Sequence[Choice]], budget_bytes: int) -> list[int]:
    """Which choice each group gets: the best mixture, or the best single one where that is hardly worse."""
    mixed = choose(table, budget_bytes)
    single = ([place] * len(table) for place in range(len(table[0])))
    fitting = [places for places in single if _total(table, places)[1] <= budget_bytes]
    best = min(fitting, key=lambda places: _total(table, places), default=mixed)
    return mixed if _total(table, mixed)[0] <= (1 - LEAST_GAIN) * _total(table, best)[0] else best


def candidates(recipe: Recipe) -> tuple[str, ...]:
    """The schemes that the quantise step's may become, fewest bits first; ConfigError if it is of no family."""
    step = recipe.quantise
    if step is None or step.scheme is None:
        raise ConfigError("budget gives each linear its bits, and the recipe has no quantise step", settings=["budget"])
    base, *suffixes = parse_scheme(step.scheme).name.split("-")
    family = next((family for family in FAMILIES if base in family), None)
    if family is None:
        known = "; ".join(", ".join(family) for family in FAMILIES)
        raise ConfigError(
            f"budget mixes schemes of one family, and {step.scheme} is of none; accepted: {known}",
            settings=["budget"],
        )
    if isinstance(step.group_size, int):
        suffixes = [*(suffix for suffix in suffixes if not _says_group(suffix)), f"g{step.group_size}"]
    return tuple(
        "-".join([name, *(suffix for suffix in suffixes if not (name.startswith("W8") and _says_group(suffix)))])
        for name in family
    )


def may_be_mixed(found: Recipe, recipe: Recipe) -> bool:
    """Whether ``found`` is what ``mix`` makes of ``recipe`` under some budget: the recipe with rules behind its own."""
    mixed, step = found.quantise, recipe.quantise
    if mixed is None or step is None:
        return False
    bare = msgspec.structs.replace(mixed, rules=mixed.rules[: len(step.rules)])
    steps = tuple(bare if each is mixed else each for each in found.steps)
    return msgspec.structs.replace(found, steps=steps) == recipe


def _says_group(suffix: str) -> bool:
    """Eight bits need none: one scale per row does."""
    return re.fullmatch("g[0-9]+", suffix) is not None


def with_rules(recipe: Recipe, by_name: Mapping[str, str]) -> Recipe:
    """The recipe with rules, after its own, that give modules these schemes: one for each scheme and kind of linear."""
    step = recipe.quantise
    assert step is not None
    numbers: dict[tuple[str, str, str], list[str]] = {}
    for module, name in by_name.items():
        match = _IN_A_LIST.fullmatch(module)
        before, number, after = match.groups() if match else (module, "", "")
        if name != step.scheme:
            numbers.setdefault((name, before, after), []).append(number)
    rules = [
        Rule(match=f"re:{re.escape(before)}({'|'.join(found)}){re.escape(after)}$", scheme=name)
        for (name, before, after), found in numbers.items()
    ]
    changed = msgspec.structs.replace(step, rules=(*step.rules, *rules))
    return msgspec.structs.replace(recipe, steps=tuple(changed if each is step else each for each in recipe.steps))


def _groups(model: ModelSource, options: Mapping[str, Schemes]) -> list[list[LinearInfo]]:
    """Linears whose scheme the family decides, those that read one value together."""
    first, *others = options.values()
    found: dict[str, list[LinearInfo]] = {}
    for info in model.linears():
        free = info.module in first and any(other[info.module] != first[info.module] for other in others)
        if is_expert(info):
            raise UnsupportedError(f"{info.module} is an expert's; bits are shared out between dense layers only")
        if info.kind == "linear" and free:
            found.setdefault(info.tap, []).append(info)
    if not found:
        raise ConfigError(
            "budget has nothing to decide: the recipe's rules name a scheme for every linear", settings=["budget"]
        )
    return list(found.values())


def _bytes(group: Sequence[LinearInfo], schemes: Schemes, steps: Steps) -> int:
    """Of codes and of what the fit may store beside them; terms of other steps are the same whatever is chosen."""
    return sum(
        stored_bytes(schemes[info.module], info.shape)
        + steps.fit_term_bytes(info.module, info.shape, schemes[info.module])
        for info in group
    )


def _fit_of(steps: Steps, info: LinearInfo) -> Fit:
    """The recipe's own fit, or GPTQ in the place of one that takes a whole block."""
    assert steps.fits is not None
    found = steps.fits.of(info.module)
    return Gptq(GptqOptions()) if isinstance(found, BlockFit) else found


def _check_budget(allowed: int, least: int, name: str) -> None:
    if allowed < least:
        raise ConfigError(
            f"budget is {allowed / 1e6:.2f} MB; with {name} everywhere the result has {least / 1e6:.2f} MB: accepted "
            "is that or more (-head8 makes embedding and head smaller)",
            settings=["budget"],
        )


def _measure(
    model: ModelSource,
    rows: CalibrationRows,
    wanted: Sequence[Wanted],
    seed: int,
    observer: Observer | None,
    cancel: CancelToken | None,
) -> dict[str, list[float]]:
    """The costs by module, with progress; nothing is left behind on disk, whatever happens."""
    token, done = cancel or CancelToken(), [0.0]

    def told(fraction: float) -> None:
        done[0] += fraction
        if observer is not None and fraction:
            observer(ProgressEvent("weigh", "sensitivity of every layer", min(done[0], 1.0), 1.0, None, peak_bytes()))
        if token.cancelled:
            raise Interrupted(f"stopped by {token.reason} while bits were shared out; nothing was written")

    with cancel_on_signals(token) if cancel is None else nullcontext(), tempfile.TemporaryDirectory() as scratch:
        drawn = min(len(rows), max(1, DRAWN_TOKENS // rows.token_ids.shape[1]))
        return sensitivities(model, rows, drawn, wanted, seed, Path(scratch), told)
