# SPDX-License-Identifier: Apache-2.0
"""JSON from files nobody vouches for: size cap before reading, no duplicate keys, objects only."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError

MAX_JSON_BYTES = 32 << 20


def read_json_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in ``path``; CheckpointError in one sentence if it is missing, too large or not a JSON object."""
    return parse_json_object(read_bytes(path, limit), str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole regular file, refused above ``limit`` bytes before anything is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if status.st_size > limit:
            raise CheckpointError(f"{path}: {status.st_size} bytes, at most {limit} are accepted")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """UTF-8 JSON text -> dict. Duplicate keys anywhere are refused: readers disagree on which one counts."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_constant)
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: not UTF-8 text") from None
    except RecursionError:
        raise CheckpointError(f"{where}: JSON nested too deeply") from None
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{where}: duplicate key {error.args[0]!r}") from None
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object is needed, this is {type(value).__name__}")
    return value


class _DuplicateKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key[:200])
            seen.add(key)
    return result


def _constant(name: str) -> float:
    """``Infinity`` and ``NaN`` are not JSON, but Python writes them and real configs hold them."""
    return float(name.replace("Infinity", "inf"))
