# SPDX-License-Identifier: Apache-2.0
"""Taking values out of a ``quantization_config`` that nobody vouches for, one sentence per mistake."""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError

Record = Mapping[str, Any]


def whole_number(record: Record, key: str, where: str, default: int | None = None) -> int:
    """An integer; CheckpointError if there is none and no default."""
    value = record.get(key, default)
    if type(value) is not int:
        raise CheckpointError(f"{where}: {key} must be a whole number, not {value!r:.80}")
    return value


def flag(record: Record, key: str, where: str, default: bool) -> bool:
    """True or false."""
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} must be true or false, not {value!r:.80}")
    return value


def word(record: Record, key: str, where: str, accepted: Sequence[str], default: str) -> str:
    """One of the accepted words, case aside; UnsupportedError lists them."""
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or value.lower() not in accepted:
        raise UnsupportedError(f"{where}: {key} {value!r:.80} is not supported; supported: {', '.join(accepted)}")
    return value.lower()


def one_of(value: int, what: str, where: str, accepted: Sequence[int]) -> int:
    """A number among the accepted ones; UnsupportedError lists them."""
    if value not in accepted:
        raise UnsupportedError(f"{where}: {what} {value} is not supported; supported: {', '.join(map(str, accepted))}")
    return value


def names(record: Record, key: str, where: str) -> tuple[str, ...]:
    """A list of strings; nothing is an empty one."""
    value = record.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{where}: {key} must be a list of names, not {value!r:.80}")
    return tuple(value)
