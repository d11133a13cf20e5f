# SPDX-License-Identifier: Apache-2.0
"""Thoughts between two tags at the beginning of an answer, as reasoning models write them."""

from collections.abc import Callable
from dataclasses import dataclass

from linnet.api.tools.grammar import Rules
from linnet.api.tools.interface import Out
from linnet.api.tools.source import Source, Steps, literal, until, white


@dataclass(frozen=True, slots=True)
class Thoughts:
    """``opening`` and ``closing``: the tags."""

    opening: str
    closing: str

    @property
    def markers(self) -> tuple[str, ...]:
        """See CallForm."""
        return self.opening, self.closing

    def begun(self, prompt: str) -> bool | None:
        """Whether an answer to the prompt begins within thoughts; None: it has none, the template has closed them."""
        end = prompt.rstrip()
        return None if end.endswith(self.closing) else end.endswith(self.opening)

    def grammar(self, rules: Rules, begun: bool | None) -> str:
        """A rule of the thoughts, which may be left out where they have not ``begun``; empty where none come."""
        if begun is None:
            return ""
        thought = rules.before(self.closing)
        space = rules.terminal(r"/[ \n]{1,4}/")
        if begun:
            return rules.rule(f"{thought} {space}?")
        return rules.rule(f"({space}? {rules.text(self.opening)} {thought} {space}?)?")

    def read(self, source: Source, out: Out, begun: bool | None, rest: Callable[[], Steps[None]]) -> Steps[None]:
        """Read thoughts, if there are any, and then the rest."""
        lead = ""
        if begun is False:
            lead = yield from white(source)
            begun = (yield from literal(source, self.opening)) is not None
        if begun:
            out.thinking = True
            yield from until(source, (self.closing,), out.reasoning)
            out.thinking, out.said.trims = False, True
        elif lead:
            out.content(lead)
        yield from rest()
