# SPDX-License-Identifier: Apache-2.0
"""The stage between an answer's text and its shape: what is thought, what is said, what is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from linnet.api.tools.interface import CallForm, Delta, Out, Tool
from linnet.api.tools.reasoning import Thoughts
from linnet.api.tools.source import Source, Steps, until


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the answers to one request are read.

    calls: the form of calls; None: there are none. thoughts, begun: see Thoughts. tools: the functions by name.
    shown: special tokens whose text is read. short_ids: see CallShape.
    """

    calls: CallForm | None = None
    thoughts: Thoughts | None = None
    begun: bool | None = False
    tools: Mapping[str, Tool] = field(default_factory=dict)
    shown: frozenset[int] = frozenset()
    short_ids: bool = False

    def reader(self) -> "AnswerReader":
        """For one answer."""
        return AnswerReader(self)

    def identity(self, request_id: str, sample: int, call: int) -> str:
        """The id of a call."""
        name = blake2b(f"{request_id}/{sample}/{call}".encode(), digest_size=12).hexdigest()
        return name[:9] if self.short_ids else f"call_{name}"

    def read(self, text: str) -> "Answer":
        """A whole answer."""
        reader = self.reader()
        return Answer.of([reader.feed(text), reader.finish()])

    def message(self, text: str, request_id: str, sample: int) -> dict[str, Any]:
        """A whole answer as a client would send it back."""
        return self.read(text).message(partial(self.identity, request_id, sample))


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer comes to: ``calls`` are names and arguments."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def of(deltas: Sequence[Delta]) -> "Answer":
        """All of it."""
        calls: list[list[str]] = []
        for piece in (piece for delta in deltas for piece in delta.calls):
            if piece.name is not None:
                calls.append([piece.name, ""])
            calls[piece.index][1] += piece.arguments
        return Answer(
            "".join(delta.content for delta in deltas),
            "".join(delta.reasoning for delta in deltas),
            tuple((name, arguments) for name, arguments in calls),
        )

    def message(self, identity: Callable[[int], str]) -> dict[str, Any]:
        """As a client would send it back; ``identity``: of the calls, by their numbers."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": identity(index), "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(self.calls)
            ]
        return message


class AnswerReader:
    """Reads one answer as it comes. The deltas together depend on the text alone, not on how it was cut."""

    def __init__(self, form: AnswerForm) -> None:
        self._source = Source()
        self._out = Out(frozenset(form.tools))
        self._steps = self._read(form)
        self._ended = not self._runs()

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends within thoughts."""
        return self._out.thinking

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._out.calls

    def feed(self, text: str) -> Delta:
        """What became certain with the next piece of text."""
        if not text:
            return Delta()
        self._source.add(text)
        if not self._ended:
            self._ended = not self._runs()
        return self._out.take()

    def finish(self) -> Delta:
        """The end of the text; what was held back."""
        self._source.ended = True
        if not self._ended:
            self._ended = not self._runs()
        self._out.end()
        return self._out.take()

    def _runs(self) -> bool:
        """Read as far as there is text; whether there is more to read."""
        try:
            next(self._steps)
            return True
        except StopIteration:
            return False

    def _read(self, form: AnswerForm) -> Steps[None]:
        source, out = self._source, self._out

        def rest() -> Steps[None]:
            if form.calls is None:
                yield from until(source, (), out.content)
            else:
                yield from form.calls.read(source, out, form.tools)

        if form.thoughts is None:
            yield from rest()
        else:
            yield from form.thoughts.read(source, out, form.begun, rest)
