# SPDX-License-Identifier: Apache-2.0
"""Calls that are JSON objects: ``{"name": …, "arguments": {…}}``, read as they come where the name comes first."""

import json
from collections.abc import Mapping
from typing import Any

from linnet.api.tools.grammar import Rules
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import Source, Steps, attempt, literal, nothing, peek, string, value, white

ARGUMENTS = ('"arguments"', '"parameters"')


def head(source: Source, out: Out) -> Steps[str | None]:
    """The name in what stands before the arguments, which is read; None for anything else, and names of nothing."""
    if (yield from literal(source, "{")) is None:
        return None
    yield from white(source)
    if (yield from literal(source, '"name"')) is None:
        return None
    if (yield from _between(source, ":")) is None:
        return None
    name = yield from string(source)
    if name is None or (yield from _between(source, ",")) is None:
        return None
    if (yield from literal(source, *ARGUMENTS)) is None or (yield from _between(source, ":")) is None:
        return None
    return (yield from called(source, out, name))


def called(source: Source, out: Out, name: str) -> Steps[str | None]:
    """The name, where an object follows and there is such a function; else None."""
    opens = (yield from peek(source)) == "{"
    return name if opens and out.knows(name) else None


def call(source: Source, out: Out) -> Steps[bool]:
    """One call whose name comes first, read to its end; False, and nothing read, where there is none."""
    name = yield from attempt(source, head(source, out))
    if name is None:
        return False
    out.call(name)
    if (yield from value(source, out.arguments)):
        yield from value(source, nothing, "{")
    return True


def whole_call(text: str, out: Out) -> bool:
    """A call in whatever order, all of it; whether it is one."""
    found = loads(text)
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        return False
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        written, arguments = arguments, loads(arguments)
    else:
        written = dumps(arguments)
    if not isinstance(arguments, Mapping) or not out.knows(found["name"]):
        return False
    out.call(found["name"])
    out.arguments(written)
    return True


def object_rule(rules: Rules, tool: Tool, key: str, more: str = "") -> str:
    """The rule of one call. ``key``: of its arguments. ``more``: a rule of what follows these."""
    begin = "{" + f'"name": {json.dumps(tool.name)}, "{key}": '
    return " ".join(part for part in (rules.text(begin), rules.schema(tool), more, rules.text("}")) if part)


def written_object(name: str, arguments: Mapping[str, Any], key: str) -> str:
    """One call as JSON."""
    return dumps({"name": name, key: dict(arguments)})


def dumps(found: Any) -> str:
    """JSON as models write it."""
    return json.dumps(found, ensure_ascii=False)


def loads(text: str) -> Any:
    """The JSON value, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _between(source: Source, mark: str) -> Steps[str | None]:
    yield from white(source)
    found = yield from literal(source, mark)
    yield from white(source)
    return found
