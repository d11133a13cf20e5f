# SPDX-License-Identifier: Apache-2.0
"""Text that arrives in pieces, read by code that looks as if it were all there.

A reader is a generator; ``yield`` means that it needs more text. Everything here waits until what it is asked is
decided, whatever may still come, so what is read depends on the text alone and not on how it was cut.
"""

import json
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], object]

WHITE = " \t\r\n"
MOST_STRING = 512
"""Characters of a name: longer ones are none."""


class Source:
    """What has come and has not been read yet."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.kept_from: int | None = None  # where text must stay, since somebody may go back

    def add(self, text: str) -> None:
        """The next piece."""
        done = self.at if self.kept_from is None else self.kept_from
        if done:
            self.text = self.text[done:]
            self.at -= done
            if self.kept_from is not None:
                self.kept_from = 0
        self.text += text

    @property
    def rest(self) -> str:
        """What has come and is unread."""
        return self.text[self.at :]

    def take(self, count: int) -> str:
        """The next so many characters, which have come."""
        taken = self.text[self.at : self.at + count]
        self.at += count
        return taken


def nothing(text: str) -> None:
    """Emits nowhere."""


def attempt(source: Source, steps: Steps[T | None]) -> Steps[tuple[T | None, str]]:
    """What ``steps`` found and the text they read; where they found nothing, nothing is read."""
    assert source.kept_from is None, "one attempt at a time"
    source.kept_from = source.at
    try:
        found = yield from steps
        begin = source.kept_from
        read = source.text[begin : source.at]
        if found is None:
            source.at = begin
    finally:
        source.kept_from = None
    return found, read


def white(source: Source) -> Steps[str]:
    """White space, as much as there is."""
    read = ""
    while True:
        rest = source.rest
        read += source.take(len(rest) - len(rest.lstrip(WHITE)))
        if source.rest or source.ended:
            return read
        yield


def literal(source: Source, *options: str) -> Steps[str | None]:
    """Which of the texts comes next, read; None, and nothing read, for another text. None begins another one."""
    while True:
        rest = source.rest
        for option in options:
            if rest.startswith(option):
                return source.take(len(option))
        if source.ended or not any(option.startswith(rest) for option in options):
            return None
        yield


def closing(source: Source, marker: str) -> Steps[None]:
    """Read the marker if it comes next, or as much of it as there is at the end of the text."""
    if (yield from literal(source, marker)) is None and source.ended and marker.startswith(source.rest):
        source.take(len(source.rest))


def until(source: Source, markers: Sequence[str], emit: Emit) -> Steps[str | None]:
    """Emit what stands before the first of the markers; which it was, read. None at the end of the text."""
    while True:
        rest = source.rest
        found = min(((at, marker) for marker in markers if (at := rest.find(marker)) >= 0), default=None)
        if found is not None:
            _emit(source.take(found[0]), emit)
            return source.take(len(found[1]))
        if source.ended:
            _emit(source.take(len(rest)), emit)
            return None
        _emit(source.take(len(rest) - max((_overlap(rest, marker) for marker in markers), default=0)), emit)
        yield


def string(source: Source) -> Steps[str | None]:
    """A JSON string, read and decoded; None for anything else."""
    if (yield from literal(source, '"')) is None:
        return None
    text = '"'
    while len(text) <= MOST_STRING:
        while not source.rest:
            if source.ended:
                return None
            yield
        text += source.take(1)
        if text[-1] == "\\":
            while not source.rest:
                if source.ended:
                    return None
                yield
            text += source.take(1)
        elif text[-1] == '"':
            try:
                return str(json.loads(text))
            except ValueError:
                return None
    return None


class JsonScanner:
    """Finds the end of a JSON object or list, by its brackets and strings only."""

    def __init__(self, inside: str = "") -> None:
        """``inside``: brackets that have been opened before."""
        self._open = [_CLOSING[bracket] for bracket in inside]
        self._string = self._escaped = False
        self.whole = self.broken = False

    def scan(self, text: str) -> int:
        """How many of the next characters belong to it; fewer than all where it is ``whole`` or ``broken``."""
        for index, letter in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._string = False
            elif letter == '"':
                self._string = True
            elif letter in _CLOSING:
                self._open.append(_CLOSING[letter])
            elif letter in "]}":
                if not self._open or self._open[-1] != letter:
                    self.broken = True
                    return index
                self._open.pop()
                if not self._open:
                    self.whole = True
                    return index + 1
            elif not (letter.isalnum() or letter in _PLAIN):
                self.broken = True
                return index
        return len(text)


def value(source: Source, emit: Emit, inside: str = "") -> Steps[bool]:
    """Emit a JSON object or list as it comes; whether it was whole. What cannot be part of it stays unread.

    ``inside``: brackets that have been read already; it ends where the first of them is closed.
    """
    scanner = JsonScanner(inside)
    while True:
        _emit(source.take(scanner.scan(source.rest)), emit)
        if scanner.whole or scanner.broken or source.ended:
            return scanner.whole
        yield


_CLOSING = {"{": "}", "[": "]"}
_PLAIN = frozenset(WHITE + ",:+-.")


def _emit(text: str, emit: Emit) -> None:
    if text:
        emit(text)


def _overlap(text: str, marker: str) -> int:
    """How much of the end of the text may be the beginning of the marker."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)
