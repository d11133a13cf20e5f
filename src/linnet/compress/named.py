# SPDX-License-Identifier: Apache-2.0
"""The recipes that come with the package: YAML files in ``recipes/``, by their names.

The comment at the head of a file says when to use it; docs/recipes.md has what each costs.
"""

import os
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from linnet.errors import ConfigError, unknown_choice

_SUFFIX = ".yaml"


def is_name(text: str | Path) -> bool:
    """Whether this is to be a recipe's name, not the path of a file."""
    return isinstance(text, str) and not re.search(r"[./\\]", text) and not os.path.exists(text)


def recipe_names() -> tuple[str, ...]:
    """In alphabetical order."""
    return tuple(sorted(each.name.removesuffix(_SUFFIX) for each in _folder().iterdir() if each.name.endswith(_SUFFIX)))


def recipe_text(name: str) -> str:
    """The YAML of a named recipe; ConfigError lists the names."""
    if name not in recipe_names():
        error = unknown_choice("recipe", name, recipe_names())
        raise ConfigError(f"{error}; or give a YAML file", settings=error.settings)
    return (_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def when_to_use(name: str) -> str:
    """What the comment at the head of a named recipe says, as one line."""
    lines = recipe_text(name).splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ").rstrip() for line in lines[:end])


def _folder() -> Traversable:
    return files("linnet.compress") / "recipes"
