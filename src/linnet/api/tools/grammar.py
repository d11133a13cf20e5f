# SPDX-License-Identifier: Apache-2.0
"""Rules of answers with calls in them, in Lark's notation as llguidance reads it."""

from collections.abc import Mapping
from typing import Any

from linnet.api.structured import literal, schema_rule
from linnet.api.tools.interface import Tool

ANY_OBJECT: Mapping[str, object] = {"type": "object"}


class Rules:
    """Collects the rules of one grammar."""

    def __init__(self, special: Mapping[str, int], loose: bool = False) -> None:
        """``special``: markers that are one special token each. ``loose``: arguments need fit strict schemas only."""
        self._special, self._loose = special, loose
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """Exactly this text, special tokens in it as such."""
        parts: list[str] = []
        while text:
            at, marker = min(
                ((place, one) for one in self._special if (place := text.find(one)) >= 0), default=(len(text), "")
            )
            if at:
                parts.append(literal(text[:at]))
            if marker:
                parts.append(f"<[{self._special[marker]}]>")
            text = text[at + len(marker) :]
        return " ".join(parts)

    def rule(self, body: str, options: str = "") -> str:
        """The name of a new rule."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """The name of a new terminal."""
        name = f"TERMINAL_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def before(self, marker: str) -> str:
        """Any text up to the first ``marker``, and the marker. Nothing but text stands before a special token."""
        if any(marker.startswith(one) for one in self._special):
            return self.rule(f"TEXT? {self.text(marker)}")
        return self.rule(f"ANY {self.text(marker)}", "[lazy]")

    def schema(self, tool: Tool) -> str:
        """What its arguments match. Raises GrammarError."""
        loose = self._loose and not tool.strict
        return schema_rule(ANY_OBJECT if loose else {"type": "object", **tool.schema})

    def value(self, tool: Tool, schema: Mapping[str, Any]) -> str:
        """What one of its arguments matches. Raises GrammarError."""
        if self._loose and not tool.strict:
            return schema_rule(True)
        shared = {key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema}
        return schema_rule({**shared, **schema})

    def named(self, name: str, body: str) -> None:
        """A rule that others know by its name."""
        self._rules.append(f"{name}: {body}")

    def document(self, start: str) -> str:
        """The whole grammar."""
        fixed = ["TEXT: /(.|\\n)+/", "ANY: /(.|\\n)*/"]
        return "\n".join([f"start: {start}", *self._rules, *fixed])


def called(rules: Rules, opening: str, after: str, *, must: bool, said: str | None) -> str:
    """A rule of calls that begin with ``opening``, or of what is said instead or before."""
    forced = rules.rule(f"{rules.text(opening)} {after}")
    if must:
        return forced
    if said is not None:
        return rules.rule(f"{forced} | {said}")
    return rules.rule(f"{rules.before(opening)} {after} | ANY")
