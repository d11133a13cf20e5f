# SPDX-License-Identifier: Apache-2.0
"""How recipes come about: from YAML of either version, from plain values, from an algorithm's name alone.

Some names stand for several steps (``CHAINS``); such a name's options go to whichever of its steps knows them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from linnet.compress.named import is_name, recipe_text
from linnet.compress.options import explain, known_keys
from linnet.compress.recipe import OneStep, Recipe, Rule, Step, StepKind, common_fields
from linnet.compress.tables import ALGORITHMS, options_of
from linnet.errors import ConfigError, unknown_choice

CHAINS: dict[str, tuple[tuple[StepKind, str], ...]] = {
    "awq": (("smooth", "awq"), ("quantise", "awq")),
    "eora": (("quantise", "gptq"), ("repair", "eora")),
    "lqer": (("quantise", "rtn"), ("repair", "lqer")),
    "quarot": (("rotate", "quarot"), ("quantise", "gptq")),
    "smoothquant": (("smooth", "smoothquant"), ("quantise", "rtn")),
}
"""Name -> the steps and algorithms it stands for."""


def make_recipe(scheme: str, algorithm: str = "gptq", **fields: Any) -> Recipe:
    """The recipe of a plain (scheme, algorithm) call; ``fields`` are OneStep's other fields."""
    return recipe_from({"scheme": scheme, "algorithm": algorithm, **fields})


def read_recipe(path: str | Path) -> Recipe:
    """Read a YAML file, or the recipe of a name (named.py). ConfigError: the file, the place and what is accepted."""
    try:
        text = recipe_text(str(path)) if is_name(path) else Path(path).read_text(encoding="utf-8")
        record = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not YAML: {yaml_error(error)}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"recipe {path} must be a mapping with the keys {', '.join(known_keys(OneStep))}, or steps")
    return recipe_from(record, where=str(path))


def recipe_from(record: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A mapping of plain values -> Recipe; an unknown key is an error that lists the known ones.

    Without ``steps`` it is a recipe of version 1: one quantise step, or the steps its algorithm's name stands for.
    """
    whole = "steps" in record or record.get("format_version", 1) != 1
    root: type[Recipe] | type[OneStep] = Recipe if whole else OneStep
    try:
        read = msgspec.convert(record, root)
    except msgspec.ValidationError as error:
        nested = {"rules": Rule, "steps": Step}
        raise ConfigError(f"{where}: {explain(error, root, nested)}") from error
    return read if isinstance(read, Recipe) else _from_one_step(read)


def _from_one_step(one: OneStep) -> Recipe:
    chain = CHAINS.get(one.algorithm, (("quantise", one.algorithm),))
    if one.algorithm not in CHAINS and one.algorithm not in ALGORITHMS["quantise"]:
        raise unknown_choice("algorithm", one.algorithm, algorithm_names())
    shares = _shares(one, chain) if len(chain) > 1 else [one.options]
    own = {"scheme": one.scheme, "group_size": one.group_size, "rules": one.rules}
    steps = [Step(step=kind, algorithm=name, options=share) for (kind, name), share in zip(chain, shares, strict=True)]
    whole = tuple(msgspec.structs.replace(step, **own) if step.step == "quantise" else step for step in steps)
    return Recipe(steps=whole, **common_fields(one))


def algorithm_names() -> tuple[str, ...]:
    """What ``algorithm`` may be where no steps are given."""
    return (*ALGORITHMS["quantise"], *(name for name in CHAINS if name not in ALGORITHMS["quantise"]))


def _shares(one: OneStep, chain: tuple[tuple[StepKind, str], ...]) -> list[dict[str, Any]]:
    """The options of a chain, each with the first step that knows it."""
    known = [known_keys(options_of(kind, name)) for kind, name in chain]
    shares: list[dict[str, Any]] = [{} for _ in chain]
    for key, value in one.options.items():
        place = next((place for place, keys in enumerate(known) if key in keys), None)
        if place is None:
            every = ", ".join(key for keys in known for key in keys)
            raise ConfigError(f"options of algorithm {one.algorithm}: there is no key {key!r}; known keys: {every}")
        shares[place][key] = value
    return shares


def yaml_error(error: yaml.YAMLError) -> str:
    """Where and why, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
