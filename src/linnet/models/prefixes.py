# SPDX-License-Identifier: Apache-2.0
"""What stands before the names in a checkpoint: the family's own prefix, or nothing in one of the bare model."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from linnet.models.spec import ArchSpec


def with_prefix(spec: ArchSpec, prefix: str) -> ArchSpec:
    """The same spec for a checkpoint whose names begin with ``prefix`` instead of ``spec.prefix``."""
    done: dict[int, Any] = {}

    def renamed(value: Any) -> Any:
        """Every module name within; blocks that were one object stay one."""
        if isinstance(value, str):
            return prefix + value.removeprefix(spec.prefix) if value.startswith(spec.prefix) else value
        if isinstance(value, tuple):
            return tuple(renamed(item) for item in value) if value and is_dataclass(value[0]) else value
        if not is_dataclass(value) or isinstance(value, type):
            return value
        if id(value) not in done:
            done[id(value)] = replace(
                value, **{item.name: renamed(getattr(value, item.name)) for item in fields(value)}
            )
        return done[id(value)]

    result: ArchSpec = renamed(spec)
    return result
