# SPDX-License-Identifier: Apache-2.0
"""One request's grammar, from the time its matcher is being made: masks for its rows, and guesses at what must come."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future

import numpy as np

from linnet.engine.matcher import Matcher


class Matching:
    """Masks, guesses and acceptance for one request whose matcher may still be in the making.

    Every method raises what the matcher raises, which ends its request only.
    """

    def __init__(self, coming: "Future[Matcher]", ends: frozenset[int]) -> None:
        """``ends``: the tokens that may end the text where it is whole."""
        self._coming, self._ends = coming, ends
        self._matcher: Matcher | None = None
        self._begun: Future[list[np.ndarray]] | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be asked. Raises what became of a grammar that cannot be."""
        if self._matcher is None and self._coming.done():
            self._matcher = self._coming.result()
        return self._matcher is not None

    def begin(self, drafts: Sequence[int], words: int, beside: Executor) -> None:
        """Let ``beside`` work out the masks of these drafts, which the next call asks for: of ``masks``, no other."""
        self._begun = beside.submit(self._filled, drafts, words)

    def masks(self, drafts: Sequence[int], words: int) -> list[np.ndarray]:
        """What may come next, and after each of the drafts in turn, as far as the grammar goes along with them.

        uint32 [words] each; as many as one more than the drafts it allows, none where the text has ended. The matcher
        is where it was before.
        """
        begun, self._begun = self._begun, None
        return self._filled(drafts, words) if begun is None else begun.result()

    def _filled(self, drafts: Sequence[int], words: int) -> list[np.ndarray]:
        assert self._matcher is not None
        masks: list[np.ndarray] = []
        ahead = 0
        try:
            while True:
                allowed = np.zeros(words, np.uint32)
                if not self._matcher.fill(allowed, self._ends):
                    break
                masks.append(allowed)
                if ahead == len(drafts) or drafts[ahead] in self._ends or not _has(allowed, drafts[ahead]):
                    break
                self._matcher.accept(drafts[ahead])
                ahead += 1
        finally:
            self._matcher.rollback(ahead)
        return masks

    def accept(self, token_ids: Sequence[int]) -> bool:
        """They were chosen; whether the text is whole with them and nothing can follow."""
        assert self._matcher is not None
        for token_id in token_ids:
            self._matcher.accept(token_id)
        return self._matcher.ended

    def ends_with(self, token_id: int) -> bool:
        """Whether the text would be whole with an allowed token and nothing could follow. It is not chosen by that."""
        assert self._matcher is not None
        self._matcher.accept(token_id)
        try:
            return self._matcher.ended
        finally:
            self._matcher.rollback(1)

    def follow(self, other: "Matching") -> None:
        """Go on from where another one of the same grammar is."""
        assert other._matcher is not None
        self._matcher = other._matcher.copy()

    def forced(self) -> tuple[int, ...]:
        """A guess at the next tokens, where there is one way to go on."""
        assert self._matcher is not None
        return tuple(self._matcher.forced())


def _has(mask: np.ndarray, token_id: int) -> bool:
    return bool(mask[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1))
