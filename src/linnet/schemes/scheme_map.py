# SPDX-License-Identifier: Apache-2.0
"""Ordered rules from module names to schemes. Resolves every linear exactly once; never skips silently."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from linnet.errors import ConfigError
from linnet.schemes.groups import check_columns, largest_fitting_group
from linnet.schemes.scheme import LinearScheme

CLASS_TARGETS = ("Linear", "Embedding")


def matches(pattern: str, name: str, module_class: str = "Linear") -> bool:
    """compressed-tensors' targets: ``re:`` + a regex matched from the start, a class name, or the exact name."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern in (name, module_class)


@dataclass(frozen=True)
class SchemeMap:
    """``rules``: (pattern, scheme or None = keep dense); the first match wins."""

    rules: tuple[tuple[str, LinearScheme | None], ...]

    def __post_init__(self) -> None:
        for pattern, _ in self.rules:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ConfigError(f"scheme rule {pattern!r} is not a regular expression: {error}") from None

    def resolve(self, modules: Iterable[str] | Mapping[str, str]) -> dict[str, LinearScheme | None]:
        """Module names (or name -> class, default ``Linear``) -> scheme, in the given order.

        ConfigError for a module no rule matches, a module named twice, and a rule that decides nothing: one that
        matches no module at all.
        """
        classes = dict(modules) if isinstance(modules, Mapping) else {}
        names = list(modules)
        used: set[str] = set()
        resolved: dict[str, LinearScheme | None] = {}
        for name in names:
            if name in resolved:
                raise ConfigError(f"module {name!r} is listed twice")
            hits = [rule for rule in self.rules if matches(rule[0], name, classes.get(name, "Linear"))]
            if not hits:
                known = ", ".join(repr(pattern) for pattern, _ in self.rules) or "none"
                raise ConfigError(f"no scheme rule matches the linear {name!r}; rules: {known}")
            used.update(pattern for pattern, _ in hits)
            resolved[name] = hits[0][1]
        for pattern, _ in self.rules:
            if pattern not in used:
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigError(f"scheme rule {pattern!r} matches no linear of this model; it has: {shown or 'none'}")
        return resolved


def check_shapes(resolved: Mapping[str, LinearScheme | None], shapes: Mapping[str, tuple[int, int]]) -> None:
    """ConfigError naming the first layer whose columns its group size does not divide."""
    for name, scheme in resolved.items():
        if scheme is not None:
            check_columns(name, shapes[name][1], scheme.weight)


def fit_groups(
    resolved: Mapping[str, LinearScheme | None], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, LinearScheme | None]:
    """Where a group size is a wish: every group scheme gets the largest size that fits, at most its own.

    Where no power of two from 16 up fits, the layer gets one scale per channel.
    """
    fitted: dict[str, LinearScheme | None] = {}
    for name, scheme in resolved.items():
        if scheme is not None and scheme.weight.group_size is not None:
            size = largest_fitting_group(shapes[name][1], scheme.weight.group_size)
            weight = replace(scheme.weight, granularity="group" if size else "channel", group_size=size)
            scheme = replace(scheme, weight=weight)
        fitted[name] = scheme
    return fitted
