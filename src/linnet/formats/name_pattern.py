# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of a config nobody vouches for, matched against names in a bounded number of steps.

Python's ``re`` backtracks: ``(a+)+b`` on a name of forty letters runs for hours. Here a set of positions (the bits of
an int) goes through the expression at once: what matters is whether it matches, not how. Same answers as ``re.match``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from linnet.errors import CheckpointError

MAX_PATTERN_CHARACTERS = 1024
MAX_STEPS = 20_000
_MAX_DEPTH = 20
_MAX_REPEATS = 1 << 16
_REPEAT = re.compile(r"\{(?:(\d+)|(\d*),(\d*))\}")
_ANCHORS = ("^", "$", r"\A", r"\Z", r"\b", r"\B")
_ESCAPED_CHARACTERS = {"x": 2, "u": 4, "U": 8}


@dataclass
class _Run:
    """One name; ``where``: bits of the positions at which a leaf of this text matches."""

    name: str
    steps: int = 0
    where: dict[str, int] = field(default_factory=dict)

    def take(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"it takes more than {MAX_STEPS} steps to match it to the name {self.name!r:.80}")


_Node = Callable[[_Run, int], int]
"""Start positions -> the positions at which a match from one of them can end."""


def check_pattern(pattern: str) -> None:
    """CheckpointError, a half sentence that says why, if an expression is malformed or cannot be bounded."""
    _parse(pattern)


@lru_cache(maxsize=1 << 16)
def matches_name(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches ``name`` from its start, as ``re.match``. CheckpointError as in ``check_pattern``."""
    try:
        return _parse(pattern)(_Run(name), 1) != 0
    except CheckpointError as error:
        raise CheckpointError(f"the pattern {pattern!r:.80} is refused: {error}") from None


@lru_cache(maxsize=1024)
def _parse(pattern: str) -> _Node:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise CheckpointError(f"it has {len(pattern)} characters, at most {MAX_PATTERN_CHARACTERS} are accepted")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"it is not a regular expression: {error}") from None
    return _Parser(pattern).either(0)


class _Parser:
    """Of an expression that ``re`` has accepted."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def either(self, depth: int) -> _Node:
        """Alternatives, up to the end or the closing parenthesis."""
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"groups are nested deeper than {_MAX_DEPTH}")
        branches = [self._sequence(depth)]
        while self._skip("|"):
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else _either(branches)

    def _skip(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _sequence(self, depth: int) -> _Node:
        items: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            items.append(self._repeated(self._item(depth)))
        return _sequence(items)

    def _item(self, depth: int) -> _Node:
        if not self._skip("("):
            return self._leaf()
        wanted: bool | None = None
        if self._skip("?P<"):
            self._at = self._text.index(">", self._at) + 1
        elif self._skip("?="):
            wanted = True
        elif self._skip("?!"):
            wanted = False
        elif not self._skip("?:") and self._text.startswith("?", self._at):
            raise CheckpointError(f"'({self._text[self._at : self._at + 3]}' is not supported")
        inner = self.either(depth + 1)
        self._at += 1
        return inner if wanted is None else _look_ahead(inner, wanted)

    def _leaf(self) -> _Node:
        start, text = self._at, self._text
        self._at += 1
        if text[start] == "\\":
            kind = text[start + 1]
            if kind.isdigit() or kind == "N":
                raise CheckpointError(f"{text[start : start + 2]!r} (a reference or a character by number or name)")
            self._at += 1 + _ESCAPED_CHARACTERS.get(kind, 0)
        elif text[start] == "[":
            self._at += text.startswith("^", self._at)
            self._at += text.startswith("]", self._at)
            while text[self._at] != "]":
                self._at += 2 if text[self._at] == "\\" else 1
            self._at += 1
        return _leaf(text[start : self._at])

    def _repeated(self, item: _Node) -> _Node:
        bounds: tuple[int, int | None] | None = None
        if self._skip("*"):
            bounds = (0, None)
        elif self._skip("+"):
            bounds = (1, None)
        elif self._skip("?"):
            bounds = (0, 1)
        elif found := _REPEAT.match(self._text, self._at):
            exactly, least, most = found.groups()
            self._at = found.end()
            bounds = (int(exactly or least or 0), int(exactly or most) if exactly or most else None)
        if bounds is None:
            return item
        if self._text.startswith("+", self._at):
            raise CheckpointError("possessive repeats are not supported")
        self._skip("?")  # lazy or greedy: the same names match
        return _repeat(item, *bounds)


def _leaf(text: str) -> _Node:
    single, width = re.compile(text), 0 if text in _ANCHORS else 1

    def run(state: _Run, starts: int) -> int:
        where = state.where.get(text)
        if where is None:
            state.take(1 + len(state.name) // 8)
            where = sum(1 << at for at in range(len(state.name) + 1) if single.match(state.name, at))
            state.where[text] = where
        state.take(1)
        return (starts & where) << width

    return run


def _sequence(items: list[_Node]) -> _Node:
    def run(state: _Run, starts: int) -> int:
        for item in items:
            if not starts:
                break
            starts = item(state, starts)
        return starts

    return run


def _either(branches: list[_Node]) -> _Node:
    def run(state: _Run, starts: int) -> int:
        ends = 0
        for branch in branches:
            ends |= branch(state, starts)
        return ends

    return run


def _look_ahead(inner: _Node, wanted: bool) -> _Node:
    def run(state: _Run, starts: int) -> int:
        ends = 0
        for at in range(starts.bit_length()):
            if starts >> at & 1:
                state.take(1)
                if (inner(state, 1 << at) != 0) == wanted:
                    ends |= 1 << at
        return ends

    return run


def _repeat(item: _Node, least: int, most: int | None) -> _Node:
    def run(state: _Run, starts: int) -> int:
        for _ in range(min(least, len(state.name) + 1)):  # after as many rounds as characters the set stays the same
            state.take(1)
            starts = item(state, starts)
            if not starts:
                return 0
        ends = fresh = starts
        left = _MAX_REPEATS if most is None else most - least
        while fresh and left:
            state.take(1)
            fresh = item(state, fresh) & ~ends
            ends |= fresh
            left -= 1
        return ends

    return run
