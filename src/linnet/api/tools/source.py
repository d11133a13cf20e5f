# SPDX-License-Identifier: Apache-2.0
"""Text that arrives in pieces, read by code that looks as if it were all there.

A reader is a generator; ``yield`` means that it needs more text. Everything here waits until what it is asked is
decided, whatever may still come, so what is read depends on the text alone and not on how it was cut.
"""

import json
import re
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], object]

WHITE = " \t\r\n"
MOST_STRING = 512
"""Characters of a name and what stands around it: longer ones are none."""


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
    def unread(self) -> int:
        """How many characters have come and are unread."""
        return len(self.text) - self.at

    def ahead(self, count: int) -> str:
        """At most so many of them; to copy all of them again and again would take quadratic time."""
        return self.text[self.at : self.at + count]

    def take(self, count: int) -> str:
        """The next so many characters, which have come."""
        taken = self.text[self.at : self.at + count]
        self.at += count
        return taken


def nothing(text: str) -> None:
    """Emits nowhere."""


def attempt(source: Source, steps: Steps[T | None]) -> Steps[T | None]:
    """What ``steps`` found; where that is nothing, nothing is read. ``steps`` must bound what they read."""
    assert source.kept_from is None, "one attempt at a time"
    source.kept_from = source.at
    try:
        found = yield from steps
        if found is None:
            source.at = source.kept_from
    finally:
        source.kept_from = None
    return found


def peek(source: Source) -> Steps[str]:
    """The next character, which stays unread; empty at the end of the text."""
    while not source.unread and not source.ended:
        yield
    return source.ahead(1)


def white(source: Source) -> Steps[str]:
    """White space, as much as there is."""
    read: list[str] = []
    while (yield from peek(source)):
        space = _SPACE.match(source.text, source.at)
        if space is None:
            break
        read.append(source.take(len(space[0])))
    return "".join(read)


def literal(source: Source, *options: str) -> Steps[str | None]:
    """Which of the texts comes next, read; None, and nothing read, for another text. None begins another one."""
    longest = max(map(len, options))
    while True:
        rest = source.ahead(longest)
        for option in options:
            if rest.startswith(option):
                return source.take(len(option))
        if source.ended or not any(option.startswith(rest) for option in options):
            return None
        yield


def closing(source: Source, marker: str) -> Steps[None]:
    """Read the marker if it comes next, or as much of it as there is at the end of the text."""
    if (yield from literal(source, marker)) is None and source.ended and marker.startswith(source.ahead(len(marker))):
        source.take(source.unread)


def until(source: Source, markers: Sequence[str], emit: Emit, most: int | None = None) -> Steps[str | None]:
    """Emit what stands before the first of the markers; which it was, read. None at the end of the text.

    ``most``: None too, and something left unread, where more characters than that come without a marker.
    """
    pattern, longest = _any_of(tuple(markers)), max(map(len, markers), default=0)
    while True:
        end = len(source.text) if most is None else min(len(source.text), source.at + most + longest)
        found = pattern.search(source.text, source.at, end)
        count = found.start() - source.at if found is not None else source.unread
        if found is None and not source.ended:
            count -= max((_overlap(source, marker) for marker in markers), default=0)
        if most is not None:
            if count > most:
                return None
            most -= count
        _emit(source.take(count), emit)
        if found is not None:
            return source.take(len(found[0]))
        if source.ended:
            return None
        yield


def text_until(source: Source, markers: Sequence[str], most: int | None = None) -> Steps[tuple[str, str | None]]:
    """What stands before the first of the markers, read, and which it was; see ``until``."""
    read: list[str] = []
    end = yield from until(source, markers, read.append, most)
    return "".join(read), end


def string(source: Source) -> Steps[str | None]:
    """A JSON string, read and decoded; None for anything else."""
    if (yield from literal(source, '"')) is None:
        return None
    text = '"'
    while len(text) <= MOST_STRING:
        letter = yield from peek(source)
        if letter == "\\":
            source.take(1)
            letter += yield from peek(source)
        if letter in ("", "\\"):
            return None
        source.take(1)
        text += letter
        if letter == '"':
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
    while (yield from peek(source)):
        _emit(source.take(scanner.scan(source.ahead(_WINDOW))), emit)
        if scanner.whole or scanner.broken:
            break
    return scanner.whole


_CLOSING = {"{": "}", "[": "]"}
_PLAIN = frozenset(WHITE + ",:+-.")
_SPACE = re.compile(f"[{WHITE}]+")
_WINDOW = 4096


@cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)) or r"(?!)")


def _emit(text: str, emit: Emit) -> None:
    if text:
        emit(text)


def _overlap(source: Source, marker: str) -> int:
    """How much of the end of what is unread may be the beginning of the marker."""
    longest = min(source.unread, len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if source.text.endswith(marker[:size])), 0)
