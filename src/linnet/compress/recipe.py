# SPDX-License-Identifier: Apache-2.0
"""The recipe: everything that decides a compression, as one frozen record that is written into the manifest."""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import msgspec

from linnet.errors import ConfigError

RECIPE_VERSION = 2
DENSE = "dense"

StepKind = Literal["prune", "rotate", "smooth", "factorise", "sparsify", "calibrate", "quantise", "repair"]
ORDER: tuple[StepKind, ...] = ("prune", "rotate", "smooth", "factorise", "sparsify", "calibrate", "quantise", "repair")
"""Steps in the one order that makes sense: what changes shapes comes first, what changes a weight before what decides
its codes, and what makes good for an error after it."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What modules that match (exact name, ``re:`` regex) get instead of what their step says.

    ``scheme`` (of a quantise step): another one, or ``dense``. ``options`` replace the step's key by key. Of the rules
    that match a module, the first that has a scheme gives the scheme, and the first that has options the options.
    """

    match: str
    scheme: str | None = None
    options: dict[str, Any] = {}


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step. ``options`` belong to the algorithm, which checks them.

    ``scheme``, of a quantise step: a preset name (``W4A16-g32``). ``group_size`` ``auto``: the largest group that fits
    each linear, at most the scheme's; None: the same, unless the scheme's name says -gN: that is an error where it does
    not divide.
    """

    step: StepKind
    algorithm: str
    options: dict[str, Any] = {}
    scheme: str | None = None
    group_size: int | Literal["auto"] | None = None
    rules: tuple[Rule, ...] = ()


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``steps`` in the order in which they are taken; one of them quantises, sparsifies, factorises or prunes.

    ``calibration``: a UTF-8 file; None: the text given to ``compress``, else the model's own. ``calibration_length`` in
    tokens; None: 512, or the model's context if that is shorter.
    ``chunk_tokens``: tokens that run through a block together (it decides the order of sums, so it is recorded).
    """

    steps: tuple[Step, ...]
    calibration: str | None = None
    calibration_rows: int = 64
    calibration_length: int | None = None
    seed: int = 0
    chunk_tokens: int = 2048
    format_version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        check_version(self.format_version, RECIPE_VERSION)
        for name, value in (
            ("chunk_tokens", self.chunk_tokens),
            ("calibration_rows", self.calibration_rows),
            ("calibration_length", self.calibration_length),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; accepted is 1 or more", settings=[name])
        _check_order(self.steps)
        for number, step in enumerate(self.steps, start=1):
            _check_step(f"step {number} ({step.step})", step)

    @property
    def quantise(self) -> Step | None:
        """The step that gives the weights their codes; None: they stay dense."""
        return self._only("quantise")

    @property
    def sparsify(self) -> Step | None:
        """The step that prunes weights."""
        return self._only("sparsify")

    @property
    def calibrate(self) -> Step | None:
        """The step that says how static scales are found."""
        return self._only("calibrate")

    @property
    def scheme(self) -> str | None:
        """What most weights become; None: they stay dense."""
        return None if self.quantise is None else self.quantise.scheme

    @property
    def factorise(self) -> Step | None:
        """The step that puts two narrow matrices in a weight's place."""
        return self._only("factorise")

    @property
    def repair(self) -> Step | None:
        """The step that puts two narrow matrices beside what the steps before it left."""
        return self._only("repair")

    def _only(self, kind: StepKind) -> Step | None:
        return next((step for step in self.steps if step.step == kind), None)

    @property
    def name(self) -> str:
        """The algorithms in their order: ``smoothquant + rtn``."""
        return " + ".join(step.algorithm for step in self.steps)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    def canonical_json(self) -> bytes:
        """Sorted keys, defaults written out."""
        return msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")


def check_version(found: int, known: int) -> None:
    """ConfigError for a recipe of a version that nobody here reads."""
    if found != known:
        raise ConfigError(f"recipe format_version {found} is unknown; this version reads 1 and {RECIPE_VERSION}")


_ONCE: dict[StepKind, str] = {
    "quantise": "a weight gets its codes once",
    "sparsify": "a weight is pruned once",
    "factorise": "a weight is replaced once",
    "repair": "an error is made good for once",
    "calibrate": "a value gets its scale once",
}
_LEAVES: dict[StepKind, str] = {
    "quantise": "codes that it cannot change any more",
    "sparsify": "zeros that it would fill or reckon with too late",
    "repair": "a term that it would reckon with too late",
}
"""What a step leaves behind it, where only a later kind may come after it."""


def _check_order(steps: tuple[Step, ...]) -> None:
    kinds = [step.step for step in steps]
    possible = (
        "possible are, in this order, any number of prune, any number of rotate, any number of smooth, one sparsify, "
        "one calibrate, one quantise, one repair, of which a prune, sparsify or quantise must be there; or any number "
        "of prune, any number of rotate and one factorise"
    )
    if not {"quantise", "sparsify", "factorise", "prune"} & set(kinds):
        raise ConfigError(f"the recipe has no quantise step, so nothing would be compressed; {possible}")
    others = [kind for kind in kinds if kind not in ("prune", "rotate", "factorise")]
    if "factorise" in kinds and others:
        raise ConfigError(
            f"the recipe has a {others[0]} step, and factorise leaves no weight that it could change; {possible}"
        )
    if "repair" in kinds and not {"quantise", "sparsify"} & set(kinds):
        raise ConfigError(f"the recipe has a repair step and none before it that loses anything; {possible}")
    if "smooth" in kinds and "quantise" not in kinds:
        raise ConfigError(f"smooth makes weights easier to quantise, and the recipe has no quantise step; {possible}")
    if "calibrate" in kinds and "quantise" not in kinds:
        raise ConfigError(f"calibrate finds scales of activations, and the recipe has no quantise step; {possible}")
    for only, once in _ONCE.items():
        if kinds.count(only) > 1:
            raise ConfigError(
                f"the recipe has two {only} steps, and {once}; give the modules that want another "
                "scheme or other options a rule of one step"
            )
    for number, (before, kind) in enumerate(pairwise(kinds), start=2):
        if ORDER.index(kind) < ORDER.index(before):
            undone = _LEAVES.get(before, "what it would undo")
            raise ConfigError(f"step {number} ({kind}) comes after {before}, which leaves {undone}; {possible}")


def _check_step(where: str, step: Step) -> None:
    """What a step of its kind may say and must say."""
    ruled = next((rule for rule in step.rules if rule.scheme is not None), None)
    if step.step == "quantise":
        if step.scheme is None:
            raise ConfigError(f"{where}: the key 'scheme' is missing")
        if isinstance(step.group_size, int) and step.group_size < 1:
            raise ConfigError(f"group_size is {step.group_size}; accepted is 1 or more", settings=["group_size"])
    elif step.scheme is not None or step.group_size is not None or ruled is not None:
        raise ConfigError(f"{where}: scheme and group_size belong to a quantise step")
    for rule in step.rules:
        if rule.scheme is None and not rule.options:
            known = "a scheme or options" if step.step == "quantise" else "options"
            raise ConfigError(f"{where}: the rule {rule.match!r} decides nothing; give it {known}")


class OneStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe of version 1, and what the command line's options make: one quantise step with its own keys on top."""

    scheme: str
    algorithm: str = "gptq"
    options: dict[str, Any] = {}
    group_size: int | Literal["auto"] | None = None
    rules: tuple[Rule, ...] = ()
    calibration: str | None = None
    calibration_rows: int = 64
    calibration_length: int | None = None
    seed: int = 0
    chunk_tokens: int = 2048
    format_version: int = 1

    def __post_init__(self) -> None:
        check_version(self.format_version, 1)


def common_fields(record: OneStep) -> Mapping[str, Any]:
    """The fields that both versions have on top."""
    ours = {field.name for field in msgspec.structs.fields(Recipe)} - {"steps", "format_version"}
    return {name: getattr(record, name) for name in ours}
