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


class Trimmed:
    """A text as it comes, its last white space held back: before a call and at the end of thoughts it means nothing.

    ``trims``: white space at its beginning means nothing either.
    """

    def __init__(self, trims: bool) -> None:
        self.trims = trims
        self.any = False  # letters have come
        self._known: list[str] = []
        self._held: list[str] = []

    def add(self, text: str) -> None:
        """More of it."""
        if self.trims and not self.any:
            text = text.lstrip(WHITE)
            self._held.clear()
        kept = text.rstrip(WHITE)
        if kept:
            self._known += [*self._held, kept]
            self._held.clear()
            self.any = True
        self._held.append(text[len(kept) :])

    def hold(self, text: str = "") -> None:
        """Forget the white space that is held back, for the ``text``, which is some."""
        self._held = [text]

    def end(self) -> None:
        """What is held back belongs to it."""
        self._known += self._held
        self._held = []

    def take(self) -> str:
        """What has become known since the last time."""
        known, self._known = "".join(self._known), []
        return known


class Out:
    """Where readers put what they find."""

    def __init__(self, names: frozenset[str]) -> None:
        """``names``: the functions that may be called."""
        self.calls = 0
        self.thinking = False
        self.said, self.thought = Trimmed(trims=False), Trimmed(trims=True)
        self._names = names
        self._pieces: list[CallPiece] = []

    def content(self, text: str) -> None:
        """More of the text."""
        self.said.add(text)

    def reasoning(self, text: str) -> None:
        """More of the thoughts."""
        self.thought.add(text)

    def new_thought(self) -> None:
        """Another one follows the last."""
        self.thought.hold("\n" if self.thought.any else "")

    def knows(self, name: str) -> bool:
        """Whether there is such a function."""
        return name in self._names

    def call(self, name: str) -> None:
        """A call begins, of a function that there is."""
        self.said.hold()
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
            self.said.end()

    def take(self) -> Delta:
        """What has come since the last time."""
        delta = Delta(self.said.take(), self.thought.take(), tuple(self._pieces))
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
