# SPDX-License-Identifier: Apache-2.0
"""A recipe's steps as objects: which algorithm, with which options, does what to which module."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

from linnet.compress.algorithm import BlockFit, Fit, MakesTerms
from linnet.compress.algorithms.static import Static, StaticOptions
from linnet.compress.caches import Cache
from linnet.compress.low_rank import LowRankFit
from linnet.compress.pruning import DecidedPrune, Prune
from linnet.compress.recipe import Recipe, Step
from linnet.compress.sparsifier import MASK_BYTES, Sparsifier
from linnet.compress.statistic import StatisticKind
from linnet.compress.tables import make_algorithm
from linnet.compress.transform import BlockTransform, ModelTransform
from linnet.errors import ConfigError
from linnet.models.inventory import LinearInfo
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.scheme_map import matches
from linnet.schemes.sparsity import SparsityPattern
from linnet.schemes.terms import low_rank_bytes

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
    """Units out of the whole model and its rotations, then in every block smoothing, then zeros, then codes and
    static scales, then what makes up for both; or two narrow matrices in the weights' places.

    ``coded``: what modules that get codes become; ``linears``: those that may be pruned or factorised, whose shapes
    are those of the model.
    """

    model_transforms: tuple[ModelTransform, ...]
    block_transforms: tuple[ByModule[BlockTransform], ...]
    sparsifiers: ByModule[Sparsifier] | None
    fits: ByModule[Fit | BlockFit] | None
    calibrators: ByModule[Static] | None = None
    factorisers: ByModule[LowRankFit] | None = None
    repairs: ByModule[LowRankFit] | None = None
    coded: Mapping[str, LinearScheme] = field(default_factory=dict)
    caches: tuple[Cache, ...] = ()
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def on(
        self, coded: Mapping[str, LinearScheme], linears: Iterable[LinearInfo], caches: tuple[Cache, ...] = ()
    ) -> "Steps":
        """The steps knowing their modules, and the KV caches if the scheme rounds them. ConfigError: a rule that no
        module asks, a pattern that does not fit."""
        inner = {info.module: info.shape for info in linears if info.kind == "linear"}
        steps = replace(self, coded=coded, linears=inner, caches=caches)
        for transform in self.block_transforms:
            transform.check_matches(coded)
        if self.fits is not None:
            self.fits.check_matches(coded)
        steps._check_calibrated({info.module for info in linears})
        if self.sparsifiers is not None:
            self.sparsifiers.check_matches(inner)
            for module, shape in inner.items():
                self.sparsifiers.of(module).pattern.check_columns(module, shape[1])
        for step, modules in ((self.factorisers, inner), (self.repairs, steps._repairable())):
            if step is not None:
                step.check_matches(modules)
                for module in modules:
                    step.of(module).rank(module, inner[module])
        return steps

    def _check_calibrated(self, linears: Collection[str]) -> None:
        static = [module for module in self.coded if self.calibrator_of(module) is not None]
        if self.calibrators is not None:
            self.calibrators.check_matches([*static, *(cache.module for cache in self.caches)])
        for module in static:
            if module not in linears:
                raise ConfigError(f"{module} reads no activations that could be calibrated; give it a scheme by a rule")

    def _repairable(self) -> list[str]:
        """The linears that lose something: a tied table and a head have no place for a term."""
        return [name for name in self.linears if name in self.coded or self.sparsifier_of(name) is not None]

    def check_tables(self, schemes: Mapping[str, LinearScheme], embedding: str) -> None:
        """ConfigError naming a module whose scheme has tables that its algorithm does not learn, or none for them."""
        for module, scheme in schemes.items():
            fit, learned = self.fit_of(module), scheme.weight.numbers.learned
            if module == embedding and learned:
                raise ConfigError(
                    f"{module}: an embedding is rounded to nearest, and {scheme.weight.element} is learned"
                )
            if module != embedding and bool(getattr(fit, "learns_tables", False)) != learned:
                has, wanted = ("learned tables", "kmeans or squeezellm") if learned else ("no tables", "rtn or gptq")
                raise ConfigError(f"{module}: {scheme.weight.element} has {has}; quantise it by {wanted}")

    def fit_of(self, module: str) -> Fit | BlockFit | None:
        """What gives the module its codes."""
        return self.fits.of(module) if self.fits is not None and module in self.coded else None

    def sparsifier_of(self, module: str) -> Sparsifier | None:
        """What prunes the module."""
        found = self.sparsifiers.of(module) if self.sparsifiers is not None and module in self.linears else None
        return found if found is not None and found.pattern.share > 0 else None

    def factoriser_of(self, module: str) -> LowRankFit | None:
        """What puts two narrow matrices in the module's place."""
        return self._low_rank(self.factorisers, module, self.linears)

    def repair_of(self, module: str) -> LowRankFit | None:
        """What makes up for the module's zeros and codes."""
        return None if self.repairs is None else self._low_rank(self.repairs, module, self._repairable())

    def _low_rank(self, step: ByModule[LowRankFit] | None, module: str, modules: Collection[str]) -> LowRankFit | None:
        made = step.of(module) if step is not None and module in modules else None
        return made if made is not None and made.rank(module, self.linears[module]) > 0 else None

    def patterns(self) -> dict[str, SparsityPattern]:
        """Every module that is pruned as a whole, and how."""
        whole = (module for module in self.linears if self.factoriser_of(module) is None)
        found = {module: self.sparsifier_of(module) for module in whole}
        return {module: sparsifier.pattern for module, sparsifier in found.items() if sparsifier is not None}

    def calibrator_of(self, module: str) -> Static | None:
        """What finds the scale of the module's activations, if it is to be stored."""
        scheme = self.coded.get(module)
        stored = scheme is not None and scheme.input is not None and not scheme.input.dynamic
        return self._static_of(module) if stored else None

    def _static_of(self, module: str) -> Static:
        return Static(StaticOptions()) if self.calibrators is None else self.calibrators.of(module)

    @property
    def kept_caches(self) -> tuple[str, ...]:
        """Attention modules whose keys and values are not rounded although others' are."""
        return tuple(cache.module for cache in self.caches if self._static_of(cache.module).keeps_kv)

    def calibrated_caches(self, segment: int | None = None) -> tuple[tuple[Cache, Static], ...]:
        """The KV caches (of one segment) whose scales are to be found, and how. Only where rows run anyway, or a step
        asks for it: Linnet itself does without such scales."""
        if self.calibrators is None and not any(self.calibrator_of(module) is not None for module in self.coded):
            return ()
        found = ((cache, self._static_of(cache.module)) for cache in self.caches if segment in (None, cache.segment))
        return tuple((cache, static) for cache, static in found if not static.keeps_kv)

    def changes(self, module: str) -> bool:
        """Whether the module becomes anything else than it is."""
        return module in self.coded or any(
            each is not None for each in (self.sparsifier_of(module), self.factoriser_of(module))
        )

    def term_bytes(self, module: str) -> int:
        """What the module's terms take on disk beside its weight, or in its place; at most (MakesTerms)."""
        scheme, made = self.coded.get(module), self.factoriser_of(module) or self.repair_of(module)
        shape = self.linears[module]
        beside = 0 if scheme is None else self.fit_term_bytes(module, shape, scheme)
        return beside + (0 if made is None else low_rank_bytes(made.rank(module, shape), shape, made.bits))

    def fit_term_bytes(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> int:
        """What a linear's fit stores at most beside its codes in this scheme."""
        fit = None if self.fits is None else self.fits.of(module)
        return fit.term_bytes(shape, scheme) if isinstance(fit, MakesTerms) else 0

    def _asking(self, module: str) -> list[Sparsifier | Fit | BlockFit | LowRankFit]:
        """Everything that is done to a module, in order."""
        every = (self.factoriser_of(module), self.sparsifier_of(module), self.fit_of(module), self.repair_of(module))
        return [each for each in every if each is not None]

    def statistics_of(self, module: str) -> Mapping[str, StatisticKind]:
        """What is wanted to be known about the module's input."""
        calibrator = self.calibrator_of(module)
        asking = [*self._asking(module), *([] if calibrator is None else [calibrator])]
        return {name: kind for each in asking for name, kind in each.statistics.items()}

    def fit_work(self, module: str, shape: tuple[int, int]) -> float:
        """Predicted seconds of what is done to a linear."""
        return sum(each.work(shape) for each in self._asking(module))

    def fit_bytes(self, module: str, shape: tuple[int, int]) -> int:
        """Greatest extra memory of what is done to a linear, its own fp32 copies included."""
        weight, fit, sparsifier = shape[0] * shape[1], self.fit_of(module), self.sparsifier_of(module)
        own = 0 if fit is None else fit.fit_bytes(shape) + 4 * weight
        if sparsifier is not None:
            own = max(own, sparsifier.sparsify_bytes(shape) + (4 + 4) * weight) + MASK_BYTES * weight
        low_rank = self.factoriser_of(module) or self.repair_of(module)
        if low_rank is not None:  # beside it lie the weight as it was and what became of it
            own = max(own, low_rank.fit_bytes(shape) + (4 + 4) * weight)
        return own

    @property
    def calibrated(self) -> bool:
        """Whether any step of the walk looks at rows."""
        steps = (self.factorisers, self.sparsifiers, self.fits, self.repairs)
        return (
            bool(self.block_transforms)
            or any(step is not None and bool(step.default.statistics) for step in steps)
            or any(self.calibrator_of(module) is not None for module in self.coded)
            or bool(self.calibrated_caches())
        )

    @property
    def prunes(self) -> tuple[Prune, ...]:
        """What takes units out and has not decided which."""
        return tuple(each for each in self.model_transforms if isinstance(each, Prune))

    @property
    def shares(self) -> bool:
        """Whether layers are pruned by shares of their own, which have not been decided."""
        step = self.sparsifiers
        made = () if step is None else (step.default, *(rule for _, rule in step.rules))
        return any(each.shares != "uniform" for each in made)

    @property
    def pruned(self) -> tuple[Mapping[str, Any], ...]:
        """Which units went, for the manifest."""
        return tuple(each.record for each in self.model_transforms if isinstance(each, DecidedPrune))

    @property
    def fits_blocks(self) -> bool:
        """Whether the linears of a block get their codes together."""
        return self.fits is not None and isinstance(self.fits.default, BlockFit)

    @property
    def follows_dense(self) -> bool:
        """Whether the dense model's rows go beside the compressed one's, because a fit aims at what becomes of them."""
        fit = None if self.fits is None else self.fits.default
        return isinstance(fit, BlockFit) and fit.follows_dense

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
    fits = None if recipe.quantise is None else _by_module(recipe.quantise)
    sparsifiers = None if recipe.sparsify is None else _by_module(recipe.sparsify)
    repairs = None if recipe.repair is None else _by_module(recipe.repair)
    if repairs is not None and fits is not None and isinstance(fits.default, BlockFit):
        raise ConfigError(
            f"{fits.name} rounds a whole block at once, and {repairs.name} makes up for one linear after another; "
            "before repair, quantise by rtn, gptq, awq or hqq"
        )
    return Steps(
        tuple(_single(step) for step in recipe.steps if step.step in ("prune", "rotate")),
        tuple(_by_module(step) for step in recipe.steps if step.step == "smooth"),
        sparsifiers,
        fits,
        factorisers=None if recipe.factorise is None else _by_module(recipe.factorise),
        repairs=repairs,
        calibrators=None if recipe.calibrate is None else _by_module(recipe.calibrate),
    )


def _single(step: Step) -> ModelTransform:
    if step.rules:
        raise ConfigError(f"{step.algorithm} changes the whole model at once and takes no rules")
    made = make_algorithm(step.step, step.algorithm, step.options)
    return Prune(step.algorithm, made) if step.step == "prune" else cast("ModelTransform", made)


def _by_module(step: Step) -> ByModule[Any]:
    def made(options: Mapping[str, Any]) -> Any:
        return make_algorithm(step.step, step.algorithm, options)

    rules = tuple((rule.match, made(step.options | rule.options)) for rule in step.rules if rule.options)
    if rules and isinstance(rules[0][1], BlockFit):
        raise ConfigError(f"{step.algorithm} fits a whole block at once; a rule may give it a scheme, but no options")
    return ByModule(step.algorithm, made(step.options), rules)
