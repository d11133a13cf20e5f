# SPDX-License-Identifier: Apache-2.0
"""What stands before the names in a checkpoint: the family's own prefix, none in one of the bare model, or what a
wrapper or a larger model around this one put there."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from linnet.errors import CheckpointError
from linnet.models.spec import ArchSpec

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")
"""torch.compile, data parallel, adapters merged into their base."""

INSIDE_A_PAIR = {"model.language_model.": "", "language_model.model.": "language_model.", "language_model.": ""}
"""Where the text half of an image and text model lies -> what stands before its head."""


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


def fit_prefix(spec: ArchSpec, names: Iterable[str]) -> tuple[ArchSpec, list[str]]:
    """The spec under the names that a checkpoint has, and a warning if a wrapper's prefix was taken off.

    The first block's first norm, which every file stores under one name, shows where the model lies. CheckpointError
    if it lies behind a prefix that is not known here.
    """
    anchor = f"{spec.layers[0].first_norm.module.format(layer=0)}.weight"
    tail = anchor.removeprefix(spec.prefix)
    found = {name.removesuffix(tail) for name in names if name == tail or name.endswith("." + tail)}
    if not found or spec.prefix in found:
        return spec, []
    for prefix in sorted(found, key=len):
        rest = prefix
        while rest not in (spec.prefix, "") and rest.startswith(WRAPPERS):
            rest = rest.removeprefix(next(wrapper for wrapper in WRAPPERS if rest.startswith(wrapper)))
        if rest not in (spec.prefix, "", *INSIDE_A_PAIR):
            continue
        wrapper = prefix.removesuffix(rest)
        head = spec.head
        if head is not None:
            head = wrapper + ("" if rest == spec.prefix else INSIDE_A_PAIR.get(rest, "")) + head
        expected = prefix == "" or {prefix, spec.prefix} <= INSIDE_A_PAIR.keys()
        note = f"the names of the tensors begin with {prefix!r} instead of {spec.prefix!r}; it is taken off"
        return replace(with_prefix(spec, prefix), head=head), [] if expected else [note]
    known = ", ".join(repr(prefix) for prefix in (spec.prefix, *WRAPPERS, *INSIDE_A_PAIR))
    raise CheckpointError(f"the names of the tensors begin with {min(found, key=len)!r}; accepted are {known}")
