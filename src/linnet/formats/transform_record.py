# SPDX-License-Identifier: Apache-2.0
"""``transform_config``: what is rotated at run time, in compressed-tensors' words (docs/FORMAT.md).

A group there is one matrix and where it is applied. What it does to weights (``weight_input``, ``weight_output``) is
done to what is stored, and of no more concern. ``input``: a linear's input; ``q_attn`` and ``k_cache`` together: the
queries and keys of an attention, behind their positions. Of matrices, ``hadamard`` is Sylvester's, which is the same
backwards (``inverse``); ``head_dim``: in runs of so many channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats.prescription import Rotation, read_patterns

TRANSFORMS_KEY = "transform_config"
_KEYS = ("apply", "head_dim", "precision", "randomize", "requires_grad", "type")
_APPLY_KEYS = ("ignore", "inverse", "location", "targets")
_STORED = ("weight_input", "weight_output")
_INPUT, _ATTENTION = ("input",), ("k_cache", "q_attn")


def rotations_to_record(rotations: Sequence[Rotation]) -> dict[str, Any]:
    """The inverse of ``read_rotations``."""
    groups: dict[str, Any] = {}
    for rotation in rotations:
        targets = list(rotation.targets)
        places = _INPUT if rotation.of == "input" else _ATTENTION
        apply: list[dict[str, Any]] = [{"targets": targets, "location": place} for place in places]
        if rotation.of == "input":
            apply.append({"targets": targets, "location": "weight_input", "inverse": True})
        kind = {"type": "hadamard", "randomize": False, "head_dim": rotation.size}
        groups[f"{rotation.of}_{len(groups)}"] = {**kind, "apply": apply}
    return {"config_groups": groups}


def read_rotations(record: Any, where: str) -> tuple[Rotation, ...]:
    """What is rotated at run time, by anything found on disk.

    CheckpointError if the record is malformed, UnsupportedError if it is valid but nothing here does what it says.
    """
    if record is None:
        return ()
    groups = record.get("config_groups", {}) if isinstance(record, dict) else None
    if not isinstance(groups, dict):
        raise CheckpointError(f"{where} must be an object with config_groups, not {record!r:.80}")
    return tuple(
        rotation
        for name, group in groups.items()
        for rotation in _of_group(group, f"{where}.config_groups.{str(name)[:80]}")
    )


def rotates(record: Any) -> bool:
    """Whether a record asks for something at run time, whoever can do it; a malformed one might."""
    try:
        return bool(read_rotations(record, ""))
    except LinnetError:
        return True


def _of_group(group: Any, where: str) -> list[Rotation]:
    _check_keys(group, _KEYS, where)
    apply = group.get("apply", [])
    if not isinstance(apply, list):
        raise CheckpointError(f"{where}.apply must be a list, not {apply!r:.80}")
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for item in apply:
        _check_keys(item, _APPLY_KEYS, f"{where}.apply")
        location = item.get("location")
        if location in _STORED:
            continue
        if location not in (*_INPUT, *_ATTENTION):
            raise UnsupportedError(
                f"{where}: location {location!r:.80} is not supported; supported: input, q_attn with k_cache, and what "
                f"is done to weights ({', '.join(_STORED)})"
            )
        targets = read_patterns(_listed(item.get("targets")), f"{where}.targets")
        ignore = read_patterns(_listed(item.get("ignore", [])), f"{where}.ignore")
        places.setdefault((targets, ignore), []).append(location)
    found = [_rotation(group, targets, ignore, at, where) for (targets, ignore), at in places.items()]
    name = where.rpartition(".config_groups.")[2]
    return [
        replace(rotation, matrices=tuple(f"{name}_{place}.weight" for place in at))
        for rotation, at in zip(found, places.values(), strict=True)
    ]


def _rotation(group: Any, targets: tuple[str, ...], ignore: tuple[str, ...], found: list[str], where: str) -> Rotation:
    """Of one group at all its places at run time."""
    kind, randomize, size = group.get("type"), group.get("randomize", False), group.get("head_dim")
    if kind != "hadamard" or randomize is not False:
        drawn = " with randomize" if randomize is not False else ""
        raise UnsupportedError(
            f"{where}: type {kind!r:.80}{drawn} is not supported; supported: hadamard, not randomised"
        )
    if size is not None and (type(size) is not int or size < 2 or size & (size - 1)):
        raise CheckpointError(f"{where}: head_dim is {size!r:.80}; accepted are powers of two from 2 on")
    if sorted(found) == sorted(_INPUT):
        return Rotation(targets, ignore, size, "input")
    if sorted(found) == sorted(_ATTENTION):
        return Rotation(targets, ignore, size, "attention")
    raise UnsupportedError(
        f"{where}: {' and '.join(found)} of {', '.join(targets)[:80]} is not supported; supported: input alone, or "
        "q_attn and k_cache of the same modules"
    )


def _check_keys(record: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: an object is needed, not {record!r:.80}")
    unknown = sorted(set(record) - set(known))
    if unknown:
        raise UnsupportedError(f"{where}: unknown key {unknown[0]!r:.80}; known: {', '.join(known)}")


def _listed(value: Any) -> Any:
    """compressed-tensors takes one name for a list of one."""
    return [value] if isinstance(value, str) else value
