# SPDX-License-Identifier: Apache-2.0
"""Tools that a request offers, what an answer says of them, and what a form of calls has to know.

Between a model's text and the shape of an answer stands one stage: it tells apart what is said, what is thought and
which functions are called. A form is how a model has learnt to write calls; each is a small file that reads it and
says its grammar.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from linnet.api.tools.source import WHITE, Source, Steps

if TYPE_CHECKING:
    from linnet.api.tools.grammar import Rules

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: ``schema`` of its arguments, an object. ``strict``: they must fit it, or the request is refused."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class CallPiece:
    """News of the call ``index`` of an answer: its name first, then its arguments, JSON in pieces."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What became certain: of the text, of the thoughts, of the calls."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Out:
    """Where readers put what they find.

    White space at the end of the text is held back: before a call and at the end of thoughts it means nothing.
    """

    def __init__(self, names: frozenset[str]) -> None:
        """``names``: the functions that may be called."""
        self.calls = 0
        self.thinking = False
        self.thought = self.said = False  # anything at all
        self.trims = False  # what is said begins where white space ends: thoughts stood before
        self._names = names
        self._content = self._reasoning = ""
        self._held = self._held_thought = ""
        self._pieces: list[CallPiece] = []

    def content(self, text: str) -> None:
        """More of the text."""
        text = self._held + text
        kept = text.rstrip(WHITE)
        if self.trims and not self.said:
            kept, text = kept.lstrip(WHITE), text.lstrip(WHITE) if kept else ""
        self._held = text[len(kept) :]
        self._content += kept
        self.said |= bool(kept)

    def reasoning(self, text: str) -> None:
        """More of the thoughts."""
        text = self._held_thought + text
        kept = text.rstrip(WHITE)
        if not self.thought:
            kept, text = kept.lstrip(WHITE), text.lstrip(WHITE) if kept else ""
        self._held_thought = text[len(kept) :]
        self._reasoning += kept
        self.thought |= bool(kept)

    def new_thought(self) -> None:
        """Another one follows the last."""
        self._held_thought = "\n" if self.thought else ""

    def knows(self, name: str) -> bool:
        """Whether there is such a function."""
        return name in self._names

    def call(self, name: str) -> None:
        """A call begins, of a function that there is."""
        self._held = ""
        self._pieces.append(CallPiece(self.calls, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if not text:
            return
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.index == self.calls - 1:
            self._pieces[-1] = CallPiece(last.index, last.name, last.arguments + text)
        else:
            self._pieces.append(CallPiece(self.calls - 1, None, text))

    def end(self) -> None:
        """Nothing follows."""
        if not self.calls:
            self._content += self._held
        self._held = ""

    def take(self) -> Delta:
        """What has come since the last time."""
        delta = Delta(self._content, self._reasoning, tuple(self._pieces))
        self._content = self._reasoning = ""
        self._pieces = []
        return delta


class CallForm(Protocol):
    """One way to write calls."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are special tokens in some vocabularies; then they are shown, and spelled so in grammars."""

    def claims(self, shown: str) -> bool:
        """Whether this is it: ``shown`` is how a template writes a call, see CallShape."""

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call, as a model writes it."""

    def grammar(self, rules: "Rules", tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """A rule of everything that follows the thoughts: calls, or what is said instead unless they ``must`` come.

        ``many``: several calls may come. ``said``: a rule of what may be said; None: any text.
        """

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """Read an answer, its thoughts left out, to its end. What is no call is content."""
