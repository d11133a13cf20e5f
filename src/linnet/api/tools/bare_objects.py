# SPDX-License-Identifier: Apache-2.0
"""``{"name": …, "parameters": {…}}`` as the whole answer, several with a semicolon between (Llama 3's form).

A special token may stand before. Nothing else tells a call from an answer in JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import Source, Steps, literal, until, white

TAG = "<|python_tag|>"


class BareObjects:
    """A CallForm."""

    markers = (TAG,)

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return "<tool_call>" not in shown and '{"name": "' in shown and '"parameters": {' in shown

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return objects.written_object(name, arguments, "parameters")

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm."""
        one = rules.rule(" | ".join(objects.object_rule(rules, tool, "parameters") for tool in tools))
        calls = rules.rule(one + (f' (";" " "? {one})*' if many else ""))
        tagged = rules.rule(f"({rules.text(TAG)})? {calls}")
        if must:
            return tagged
        if said is not None:
            return rules.rule(f"{tagged} | {said}")
        other = rules.terminal(r'/(.|\n)*/ & ~/\{"name"(.|\n)*/')
        return rules.rule(f"{tagged} | {other}")

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm."""
        lead = yield from white(source)
        tag = yield from literal(source, TAG)
        lead += tag or ""
        while (yield from objects.call(source, out)):
            lead = yield from white(source)
            if (yield from literal(source, ";", TAG)) is not None:
                lead = ""
                yield from white(source)
        if lead:
            out.content(lead)
        yield from until(source, (), out.content)
