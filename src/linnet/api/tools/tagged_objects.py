# SPDX-License-Identifier: Apache-2.0
"""``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, one pair of tags for each call (Hermes' form)."""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules, called
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import Source, Steps, closing, text_until, until, white

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class TaggedObjects:
    """A CallForm."""

    markers = (OPENING, CLOSING)

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        _, opening, inner = shown.partition(OPENING)
        return bool(opening) and inner.lstrip().startswith('{"name"')

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return f"{OPENING}\n{objects.written_object(name, arguments, 'arguments')}\n{CLOSING}"

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm."""
        one = rules.rule(" | ".join(objects.object_rule(rules, tool, "arguments") for tool in tools))
        end = rules.rule(f'"\\n" {rules.text(CLOSING)}')
        after = rules.rule(
            f'"\\n" {one} {end}' + (f' ("\\n" {rules.text(OPENING)} "\\n" {one} {end})*' if many else "")
        )
        return called(rules, OPENING, after, must=must, said=said)

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm."""
        while (yield from until(source, (OPENING,), out.content)) is not None:
            lead = yield from white(source)
            if (yield from objects.call(source, out)):
                yield from white(source)
                yield from closing(source, CLOSING)
                continue
            held, end = yield from text_until(source, (CLOSING,))
            if not objects.whole_call(held, out):
                out.content(f"{OPENING}{lead}{held}{end or ''}")
