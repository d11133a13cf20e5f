# SPDX-License-Identifier: Apache-2.0
"""``[TOOL_CALLS]`` and a JSON list of calls, or, newer, ``[TOOL_CALLS]name[ARGS]{…}`` again and again (Mistral's)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules, called
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import (
    MOST_STRING,
    WHITE,
    Source,
    Steps,
    attempt,
    literal,
    nothing,
    peek,
    until,
    value,
    white,
)

OPENING, IDENTITY, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME_ENDS = WHITE + "[{"
_MOST_NAME = 128


class ListedCalls:
    """A CallForm: the list."""

    markers = (OPENING, IDENTITY, ARGUMENTS)

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return re.search(re.escape(OPENING) + r"\s*\[\s*\{", shown) is not None

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return f"{OPENING}[{objects.written_object(name, arguments, 'arguments')}]"

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm."""
        identity = rules.rule('", \\"id\\": \\"" /[a-zA-Z0-9]{9}/ "\\""')
        one = rules.rule(" | ".join(objects.object_rule(rules, tool, "arguments", f"{identity}?") for tool in tools))
        after = rules.rule(f'" "? "[" {one}' + (f' (", " {one})*' if many else "") + ' "]"')
        return called(rules, OPENING, after, must=must, said=said)

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm. Reads both."""
        while (yield from until(source, (OPENING,), out.content)) is not None:
            lead = yield from white(source)
            if (yield from literal(source, "[")) is not None:
                inner = yield from white(source)
                if not (yield from _list(source, out)):
                    out.content(f"{OPENING}{lead}[{inner}")
                continue
            name = yield from attempt(source, _head(source, out))
            if name is None:
                out.content(OPENING + lead)
                continue
            out.call(name)
            yield from value(source, out.arguments)
            yield from white(source)


class NamedCalls(ListedCalls):
    """A CallForm: each call with a mark of its own."""

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return re.search(re.escape(OPENING) + r"\w+(\[CALL_ID\]\w+)?(\[ARGS\])?\s*\{", shown) is not None

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return f"{OPENING}{name}{ARGUMENTS}{objects.dumps(dict(arguments))}"

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm."""
        one = rules.rule(" | ".join(f"{rules.text(tool.name + ARGUMENTS)} {rules.schema(tool)}" for tool in tools))
        after = rules.rule(one + (f" ({rules.text(OPENING)} {one})*" if many else ""))
        return called(rules, OPENING, after, must=must, said=said)


def _list(source: Source, out: Out) -> Steps[bool]:
    """Calls up to the bracket that closes the list; whether there were any."""
    found = False
    while (yield from objects.call(source, out)):
        found = True
        yield from white(source)
        separator = yield from literal(source, ",", "]")
        if separator == ",":
            yield from white(source)
            continue
        break
    return found


def _head(source: Source, out: Out) -> Steps[str | None]:
    """The name, what stands between it and the arguments read."""
    name = ""
    while len(name) <= _MOST_NAME:
        letter = yield from peek(source)
        if letter in _NAME_ENDS:  # or there is none
            break
        name += source.take(1)
    marked = yield from literal(source, IDENTITY, ARGUMENTS)
    if marked == IDENTITY and (yield from until(source, (ARGUMENTS, "{"), nothing, MOST_STRING)) == "{":
        source.at -= 1
    yield from white(source)
    return (yield from objects.called(source, out, name))
