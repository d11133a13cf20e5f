# SPDX-License-Identifier: Apache-2.0
"""The recipe: everything that decides a compression, as one frozen record that is written into the manifest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from linnet.errors import ConfigError, record_error

RECIPE_VERSION = 1
DENSE = "dense"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Modules that match (exact name, ``re:`` regex) get this scheme instead of the recipe's, or stay ``dense``."""

    match: str
    scheme: str


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``scheme``: a preset name (``W4A16-g32``). ``options`` belong to the algorithm, which checks them.

    ``group_size`` ``auto``: the largest group that fits each linear, at most the scheme's; None: the same, unless the
    scheme's name says -gN: that is an error where it does not divide. ``calibration``: a UTF-8 file; None: the text
    given to ``compress``, else the model's own. ``calibration_length`` in tokens; None: 512, or the model's context if
    that is shorter.
    ``chunk_tokens``: tokens that run through a block together (it decides the order of sums, so it is recorded).
    """

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
    format_version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        if self.format_version != RECIPE_VERSION:
            raise ConfigError(
                f"recipe format_version {self.format_version} is unknown; this version reads {RECIPE_VERSION}"
            )
        for name, value in (
            ("chunk_tokens", self.chunk_tokens),
            ("calibration_rows", self.calibration_rows),
            ("calibration_length", self.calibration_length),
            ("group_size", self.group_size),
        ):
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name} is {value}; accepted is 1 or more", settings=[name])

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    def canonical_json(self) -> bytes:
        """Sorted keys, defaults written out."""
        return msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")


def make_recipe(scheme: str, algorithm: str = "gptq", **fields: Any) -> Recipe:
    """The recipe of a plain (scheme, algorithm) call; ``fields`` are Recipe's other fields."""
    return recipe_from({"scheme": scheme, "algorithm": algorithm, **fields})


def read_recipe(path: Path) -> Recipe:
    """Read a YAML file. ConfigError names the file, the place and what is accepted."""
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not YAML: {yaml_error(error)}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"recipe {path} must be a mapping with the keys {', '.join(_known(Recipe))}")
    return recipe_from(record, where=str(path))


def recipe_from(record: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A mapping of plain values -> Recipe; an unknown key is an error that lists the known ones."""
    try:
        return msgspec.convert(record, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, record, Recipe)}") from error


def yaml_error(error: yaml.YAMLError) -> str:
    """Where and why, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def explain(error: msgspec.ValidationError, record: Mapping[str, Any], root: type) -> str:
    """msgspec's message, plus the known keys of the record in which it found the fault."""
    message = str(error)
    plain = record_error(message)
    if "unknown field" not in message and "missing required field" not in message:
        return plain
    kind = Rule if root is Recipe and "`$.rules" in message else root
    return f"{plain}; known keys: {', '.join(_known(kind))}"


def _known(kind: type) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(kind))
