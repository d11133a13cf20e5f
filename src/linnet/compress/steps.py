# SPDX-License-Identifier: Apache-2.0
"""A recipe's steps as objects: which algorithm, with which options, does what to which module."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from linnet.compress.algorithm import BlockFit, Fit
from linnet.compress.recipe import Recipe, Step
from linnet.compress.statistic import StatisticKind
from linnet.compress.tables import make_algorithm
from linnet.compress.transform import BlockTransform, ModelTransform
from linnet.errors import ConfigError
from linnet.models.inventory import LinearInfo
from linnet.schemes.scheme_map import matches

Made = TypeVar("Made")


@dataclass(frozen=True)
class ByModule(Generic[Made]):
    """One step's algorithm, built once for its own options and once for each rule's."""

    name: str
    default: Made
    rules: tuple[tuple[str, Made], ...]

    def of(self, module: str) -> Made:
        """The algorithm with the options of the first rule that matches, else with the step's own."""
        return next((made for pattern, made in self.rules if matches(pattern, module)), self.default)

    def check_matches(self, modules: Iterable[str]) -> None:
        """ConfigError for a pattern that matches none of ``modules``."""
        names = list(modules)
        for pattern, _ in self.rules:
            if not any(matches(pattern, name) for name in names):
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigError(
                    f"the rule {pattern!r} of {self.name} matches no module that is compressed; there are: {shown}"
                )


@dataclass(frozen=True)
class Steps:
    """Rotations of the whole model, then in every block smoothing, then codes."""

    model_transforms: tuple[ModelTransform, ...]
    block_transforms: tuple[ByModule[BlockTransform], ...]
    fits: ByModule[Fit | BlockFit]

    def statistics_of(self, module: str) -> Mapping[str, StatisticKind]:
        """What the module's fit wants to know about its input."""
        return self.fits.of(module).statistics

    @property
    def calibrated(self) -> bool:
        """Whether any step looks at rows."""
        return bool(self.block_transforms) or bool(self.fits.default.statistics)

    @property
    def fits_blocks(self) -> bool:
        """Whether the linears of a block get their codes together."""
        return isinstance(self.fits.default, BlockFit)

    def check_modules(self, chosen: Iterable[str]) -> None:
        """ConfigError for a rule that no module asks; ``chosen``: those that will be compressed."""
        names = list(chosen)
        for transform in self.block_transforms:
            transform.check_matches(names)
        self.fits.check_matches(names)

    def check_shared(self, linears: Iterable[LinearInfo]) -> None:
        """ConfigError where linears that read one value are to be smoothed with different options."""
        for transform in self.block_transforms:
            found: dict[str, tuple[str, object]] = {}
            for info in linears:
                made = transform.of(info.module)
                first, other = found.setdefault(info.tap, (info.module, made))
                if other is not made:
                    raise ConfigError(
                        f"{first} and {info.module} read the same value and are smoothed as one, so that a rule of "
                        f"{transform.name} must match both or neither"
                    )


def build_steps(recipe: Recipe) -> Steps:
    """Build every algorithm once for each set of options. ConfigError: unknown algorithm or option."""
    of_kind: dict[str, list[Step]] = {"rotate": [], "smooth": [], "quantise": []}
    for step in recipe.steps:
        of_kind[step.step].append(step)
    return Steps(
        tuple(_single(step) for step in of_kind["rotate"]),
        tuple(_by_module(step) for step in of_kind["smooth"]),
        _by_module(recipe.quantise),
    )


def _single(step: Step) -> ModelTransform:
    if step.rules:
        raise ConfigError(f"{step.algorithm} changes the whole model at once and takes no rules")
    return cast("ModelTransform", make_algorithm(step.step, step.algorithm, step.options))


def _by_module(step: Step) -> ByModule[Any]:
    def made(options: Mapping[str, Any]) -> Any:
        return make_algorithm(step.step, step.algorithm, options)

    rules = tuple((rule.match, made(step.options | rule.options)) for rule in step.rules if rule.options)
    if rules and isinstance(rules[0][1], BlockFit):
        raise ConfigError(f"{step.algorithm} fits a whole block at once; a rule may give it a scheme, but no options")
    return ByModule(step.algorithm, made(step.options), rules)
