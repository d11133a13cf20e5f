# SPDX-License-Identifier: Apache-2.0
"""What a config prescribes for a model's modules, whatever form it was written in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from linnet.errors import CheckpointError
from linnet.formats.name_pattern import check_pattern, matches_name
from linnet.schemes import LinearScheme, Terms
from linnet.schemes.elements import ElementName
from linnet.schemes.scheme_map import CLASS_TARGETS

CACHE_SCALES = re.compile(
    r"\.(k_scale|v_scale|q_scale|k_proj\.output_scale|v_proj\.output_scale|qkv_proj\.output_scale)$"
)
"""Static scales for a quantised KV cache; Linnet computes one per token and head, which loses less."""


@dataclass(frozen=True)
class SchemeGroup:
    """Modules that match one of ``targets`` are stored with ``scheme``."""

    targets: tuple[str, ...]
    scheme: LinearScheme


@dataclass(frozen=True)
class Rotation:
    """Modules that match one of ``targets`` and none of ``ignore`` are rotated at run time: a linear's input, or the
    queries and keys of an attention behind their positions, in runs of ``size`` channels (None: all of a linear's, a
    head of an attention)."""

    targets: tuple[str, ...]
    ignore: tuple[str, ...] = ()
    size: int | None = None
    of: Literal["input", "attention"] = "input"
    matrices: tuple[str, ...] = field(default=(), compare=False)
    """Names relative to the module under which its writer may have stored the matrix, which follows from the size."""

    def takes(self, module: str) -> bool:
        """Whether it is one of those, given that it is a linear or an attention, as ``of`` says."""
        if any(_matches(pattern, module) for pattern in self.ignore):
            return False
        return any((self.of == "input" and _is_class(target)) or _matches(target, module) for target in self.targets)


@dataclass(frozen=True)
class Quantization:
    """What config.json says about quantised modules. ``groups`` is empty for a dense model.

    ``method`` is the config's ``quant_method``, or ``dense``. Targets are compressed-tensors': exact names, ``re:`` and
    a pattern, or a class; other forms say the same with them.
    """

    method: str
    groups: tuple[SchemeGroup, ...] = ()
    ignore: tuple[str, ...] = ()
    kv_element: ElementName | None = None
    """What the file wants keys and values of a cache to be stored as. Its scales for them are not used."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """Of the linears that are more or less than their weight, by module."""
    rotations: tuple[Rotation, ...] = ()
    """What is rotated at run time."""

    def kv_element_of(self, attention: str) -> ElementName | None:
        """What an attention module's keys and values are to be stored as; one that is ignored by its very name keeps
        them plain."""
        return None if attention in self.ignore else self.kv_element

    def scheme_of(self, module: str) -> LinearScheme | None:
        """The scheme prescribed for a module that is a linear or an embedding; None if it is ignored or no target.

        As compressed-tensors decides it: exact names first, then regular expressions, then classes.
        """
        if any(_matches(pattern, module) for pattern in self.ignore):
            return None
        candidates = [(target, group.scheme) for group in self.groups for target in group.targets]
        for rank in (_is_exact, _is_pattern, _is_class):
            for target, scheme in candidates:
                if rank(target) and (target in CLASS_TARGETS or _matches(target, module)):
                    return scheme
        return None


def read_patterns(value: Any, where: str) -> tuple[str, ...]:
    """Targets found on disk. CheckpointError for what is no list of names, classes and patterns that can be tried."""
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise CheckpointError(f"{where} must be a list of strings, not {value!r:.80}")
    for pattern in value:
        if pattern.startswith("re:"):
            try:
                check_pattern(pattern[3:])
            except CheckpointError as error:
                raise CheckpointError(f"{where}: the pattern {pattern!r:.80} is refused: {error}") from None
    return tuple(value)


def _matches(target: str, module: str) -> bool:
    return matches_name(target[3:], module) if _is_pattern(target) else target == module


def _is_exact(target: str) -> bool:
    return not _is_pattern(target) and not _is_class(target)


def _is_pattern(target: str) -> bool:
    return target.startswith("re:")


def _is_class(target: str) -> bool:
    return target in CLASS_TARGETS
