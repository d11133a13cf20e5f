# SPDX-License-Identifier: Apache-2.0
"""Program <-> canonical JSON, and its digest.

Canonical: keys sorted, no spaces, ASCII, numbers as Python's shortest repr, tuples as lists, every field written. The
SHA-256 of it names the program in Reports, resume points and numerics ids. A record is an object whose ``type`` is
its class where a field may hold several classes. An unknown kind, field or version is a ProgramError.
"""

import functools
import hashlib
import json
import math
import types
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from linnet.errors import ConfigError
from linnet.program.attributes import ATTRIBUTES
from linnet.program.check import check
from linnet.program.program import PROGRAM_VERSION, Op, Program
from linnet.program.signatures import ProgramError
from linnet.schemes.scheme import LinearScheme, Scheme

RECORDS: dict[str, type] = {"Scheme": Scheme, "LinearScheme": LinearScheme}
"""Classes that may stand where a dense type may stand too."""


def to_json(program: Program) -> str:
    """The canonical text of a program."""
    return json.dumps(_plain(program), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(program: Program) -> str:
    """SHA-256 of the canonical text, 64 hexadecimal digits."""
    return hashlib.sha256(to_json(program).encode("ascii")).hexdigest()


def from_json(text: str) -> Program:
    """Read and check a program. Raises ProgramError for anything that is not one."""
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ProgramError(f"not a program: {error}") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != PROGRAM_VERSION or type(version) is not int:
        raise ProgramError(f"program version {version!r} is unknown; this build reads version {PROGRAM_VERSION}")
    program = _record(Program, raw, "program")
    assert isinstance(program, Program)
    check(program)
    return program


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProgramError("a JSON object holds the same key twice")
    return found


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Annotated types of a record's fields; resolving them anew for every op takes longer than all the rest."""
    return get_type_hints(cls)


def _plain(value: object, annotation: Any = None) -> Any:
    """Plain lists and objects; a whole number in a float field is written as a float, so that equal means equal."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        plain = {
            field.name: _plain(getattr(value, field.name), hints[field.name])
            for field in fields(value)
            if not (_may_be_left_out(field) and getattr(value, field.name) == field.default)
        }
        if type(value) in RECORDS.values():
            plain["type"] = type(value).__name__
        return plain
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if type(value) is int and (annotation is float or float in get_args(annotation)):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ProgramError(f"a program cannot hold {value!r}")
    return value


def _may_be_left_out(field: "Field[Any]") -> bool:
    """Fields younger than the programs that are written (schemes.scheme.LATER)."""
    return bool(field.metadata.get("written_if_set"))


def _record(cls: type, raw: Any, where: str) -> object:
    """Build a frozen record from a plain object: exactly its fields, each of its annotated type."""
    if not isinstance(raw, dict):
        raise ProgramError(f"{where}: expected an object, found {type(raw).__name__}")
    raw = dict(raw)
    if cls in RECORDS.values() and raw.pop("type", None) != cls.__name__:
        raise ProgramError(f"{where}: expected a record of type {cls.__name__}")
    hints = dict(_hints(cls))
    names = [field.name for field in fields(cls)]
    for name in raw:
        if name not in names:
            raise ProgramError(f"{where}: unknown field {name!r}; {cls.__name__} has {', '.join(names)}")
    if cls is Op:
        kind = raw.get("kind")
        if not isinstance(kind, str) or kind not in ATTRIBUTES:
            raise ProgramError(f"{where}: unknown op kind {kind!r}; known are {', '.join(ATTRIBUTES)}")
        hints["attributes"] = ATTRIBUTES[kind]
    raw = {field.name: _plain(field.default) for field in fields(cls) if _may_be_left_out(field)} | raw
    for name in names:
        if name not in raw:
            raise ProgramError(f"{where}: field {name!r} is missing")
    arguments = {name: _typed(hints[name], raw[name], f"{where}.{name}") for name in names}
    try:
        return cls(**arguments)
    except (ConfigError, ValueError, TypeError) as error:
        raise ProgramError(f"{where}: {error}") from error


def _typed(annotation: Any, raw: Any, where: str) -> Any:
    """A plain value as ``annotation`` says, or a ProgramError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, raw, where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ProgramError(f"{where}: expected a list, found {type(raw).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(raw))
        if len(raw) != len(arguments):
            raise ProgramError(f"{where}: expected {len(arguments)} items, found {len(raw)}")
        return tuple(_typed(kind, item, where) for kind, item in zip(arguments, raw, strict=True))
    if origin is Literal:
        if raw in arguments and isinstance(raw, str):
            return raw
    elif annotation is float:
        if type(raw) in (int, float) and math.isfinite(raw):
            return float(raw)
    elif annotation in (int, bool, str, type(None)):
        if type(raw) is annotation:
            return raw
    elif annotation == "Op" or is_dataclass(annotation):
        return _record(Op if annotation == "Op" else annotation, raw, where)
    raise ProgramError(f"{where}: {raw!r} is not {getattr(annotation, '__name__', annotation)}")


def _one_of(arguments: tuple[Any, ...], raw: Any, where: str) -> Any:
    """The alternative that fits; records are told apart by their ``type``."""
    if isinstance(raw, dict):
        for argument in arguments:
            if argument in RECORDS.values() and argument.__name__ == raw.get("type"):
                return _record(RECORDS[argument.__name__], raw, where)
        raise ProgramError(f"{where}: a record of unknown type {raw.get('type')!r}")
    for argument in arguments:
        if not is_dataclass(argument):
            try:
                return _typed(argument, raw, where)
            except ProgramError:
                continue
    raise ProgramError(f"{where}: {raw!r} is none of the accepted types")
