# SPDX-License-Identifier: Apache-2.0
"""Calls between marks of their own: begin of all, begin, name, separator, arguments, end, end of all (DeepSeek's).

The older form has the kind of tool where the newer has its name, and the arguments in a fence of Markdown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules, called
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import (
    MOST_STRING,
    Source,
    Steps,
    attempt,
    closing,
    literal,
    text_until,
    until,
    value,
    white,
)

OPENING, CLOSING = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, BETWEEN, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE, FENCE_END = "```json\n", "\n```"


class MarkedCalls:
    """A CallForm: the newer one."""

    markers = (OPENING, CLOSING, BEGIN, BETWEEN, END)
    before_name, before_arguments, after_arguments = BEGIN, BETWEEN, END

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return BEGIN in shown and FENCE not in shown

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return OPENING + self._one(name, objects.dumps(dict(arguments))) + CLOSING

    def _one(self, name: str, arguments: str) -> str:
        return f"{self.before_name}{name}{self.before_arguments}{arguments}{self.after_arguments}"

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm."""
        end = rules.rule(rules.text(self.after_arguments))
        heads = [rules.text(self.before_name + tool.name + self.before_arguments) for tool in tools]
        pairs = zip(heads, tools, strict=True)
        one = rules.rule(" | ".join(f"{head} {rules.schema(tool)} {end}" for head, tool in pairs))
        after = rules.rule(one + (f' ("\\n"? {one})*' if many else "") + f" {rules.text(CLOSING)}")
        return called(rules, OPENING, after, must=must, said=said)

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm. Reads both."""
        while (yield from until(source, (OPENING,), out.content)) is not None:
            lead, found = OPENING, False
            while True:
                lead += yield from white(source)
                name = yield from attempt(source, _head(source, out))
                if name is None:
                    break
                lead, found = "", True
                out.call(name)
                yield from value(source, out.arguments)
                yield from white(source)
                yield from closing(source, "```")
                yield from white(source)
                yield from closing(source, END)
            if not found:
                out.content(lead)
            yield from closing(source, CLOSING)


class FencedCalls(MarkedCalls):
    """A CallForm: the older one."""

    before_name, before_arguments, after_arguments = f"{BEGIN}function{BETWEEN}", f"\n{FENCE}", FENCE_END + END

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return BEGIN in shown and FENCE in shown


def _head(source: Source, out: Out) -> Steps[str | None]:
    """The name, everything before the arguments read."""
    if (yield from literal(source, BEGIN)) is None:
        return None
    name, end = yield from text_until(source, (BETWEEN,), MOST_STRING)
    if end is None:
        return None
    if name == "function" and (yield from literal(source, "{")) is None:
        name, end = yield from text_until(source, ("\n",), MOST_STRING)
        if end is None:
            return None
        if (yield from literal(source, FENCE)) is None:
            return None
    elif name == "function":
        source.at -= 1
    yield from white(source)
    return (yield from objects.called(source, out, name))
