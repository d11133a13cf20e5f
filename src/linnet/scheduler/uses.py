# SPDX-License-Identifier: Apache-2.0
"""What the rows of a plan item are for. Each use names `rows` rows from offset `first` on and says what they yield.

The logits of these rows are needed, and of no others. Uses of one item are in ascending order and share no row.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Sample:
    """Draw the token that follows the row: one, or none where the engine could not decide (it is asked again)."""

    first: int
    rows: ClassVar[int] = 1
    most_tokens: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Verify:
    """Draw the token that follows the row, and while it is what the next row was computed for, the next one too.

    The rows after `first` hold `draft_token_ids`, guesses: k of them yield 1 … k + 1 tokens, the same as one at a time.
    """

    first: int
    draft_token_ids: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The last known token's, and one for each guess."""
        return 1 + len(self.draft_token_ids)

    @property
    def most_tokens(self) -> int:
        """All guesses, and what follows the last one."""
        return 1 + len(self.draft_token_ids)


@dataclass(frozen=True, slots=True)
class Score:
    """Tell how likely `target_ids` are, each after its row: numbers, no token."""

    first: int
    target_ids: tuple[int, ...]
    most_tokens: ClassVar[int] = 0

    @property
    def rows(self) -> int:
        """One for each target."""
        return len(self.target_ids)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Tell what the model holds of the rows before its head: vectors, no token."""

    first: int
    rows: int
    most_tokens: ClassVar[int] = 0


RowUse = Sample | Verify | Score | Hidden
"""What some rows are for."""
