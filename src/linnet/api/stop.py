# SPDX-License-Identifier: Apache-2.0
"""Finding stop strings in text that arrives in pieces, without ever letting out the beginning of one."""

from collections.abc import Sequence


def _failure_table(pattern: str) -> tuple[int, ...]:
    """Knuth, Morris, Pratt 1977: length of the longest proper border of every prefix."""
    table, length = [0] * len(pattern), 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = table[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        table[index] = length
    return tuple(table)


class StopFinder:
    """The match is the one that is complete first; among those complete at the same character, the longest.

    So the result depends on the text alone, not on how it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = tuple((stop, _failure_table(stop)) for stop in stops)
        self._lengths = [0] * len(self._patterns)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text that is certainly not part of a stop string; after a match (see ``matched``) nothing more comes."""
        if self.matched is not None:
            return ""
        if not self._patterns:
            return text
        self._held += text
        fresh = len(self._held) - len(text)
        for offset, character in enumerate(text):
            self._advance(character)
            if self.matched is not None:
                before = self._held[: fresh + offset + 1 - len(self.matched)]
                self._held = ""
                return before
        kept = max(self._lengths)
        cut = len(self._held) - kept
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for index, (pattern, table) in enumerate(self._patterns):
            length = self._lengths[index]
            while length and pattern[length] != character:
                length = table[length - 1]
            if pattern[length] == character:
                length += 1
            if length == len(pattern):
                if self.matched is None or len(pattern) > len(self.matched):
                    self.matched = pattern
                length = table[-1]
            self._lengths[index] = length
