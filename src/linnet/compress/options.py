# SPDX-License-Identifier: Apache-2.0
"""Options records: plain values become an algorithm's own frozen record, and what does not fit is said in words."""

from collections.abc import Mapping
from typing import Any

import msgspec

from linnet.errors import ConfigError, record_error


def read_options(algorithm: str, options: Mapping[str, Any], kind: type) -> Any:
    """Plain values -> the record ``kind``; ConfigError lists the known keys."""
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of algorithm {algorithm}: {explain(error, kind)}") from error


def explain(error: msgspec.ValidationError, root: type, nested: Mapping[str, type] | None = None) -> str:
    """msgspec's message, plus the known keys of the record in which it found the fault.

    ``nested``: which records the lists hold, by the name of their field.
    """
    message = str(error)
    plain = record_error(message)
    if "unknown field" not in message and "missing required field" not in message:
        return plain
    place = message.rpartition(" - at `")[2] if " - at `" in message else ""
    names = {name: place.rfind(f".{name}[") for name in nested or {}}
    deepest = max(names, key=lambda name: names[name], default=None)
    kind = root if deepest is None or names[deepest] < 0 else (nested or {})[deepest]
    return f"{plain}; known keys: {', '.join(known_keys(kind))}"


def known_keys(kind: type) -> tuple[str, ...]:
    """The keys a record takes."""
    return tuple(field.encode_name for field in msgspec.structs.fields(kind))
