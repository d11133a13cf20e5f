# SPDX-License-Identifier: Apache-2.0
"""What crosses the scheduler's door: the plan of a step, its result, and the events that come of it.

Frozen plain values of integers: they can be logged, compared, replayed and sent to another process as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .request import FinishReason
from .uses import RowUse, Verify


@dataclass(frozen=True, slots=True)
class StepItem:
    """One request's part of a step: compute the rows of positions [start, start + n).

    token_ids:     those n tokens: known ones, then the guesses of a Verify.
    blocks:        per cache group, the blocks that hold positions [0, start + n), in order; position p is slot
                   p % block_size of block p // block_size. GIVEN_BACK stands for the first ones where no row of the
                   item, or of a later one, reads them.
    uses:          what rows are for, see `uses.py`; none for a piece of a prompt.
    state_slot:    where the sequence keeps what it carries from token to token; None: it carries nothing.
    adapter:       the place of the adapter that the rows go through; None: none.
    participants:  which of the engine's models compute the rows, each with its own keys and values in these blocks.

    Rows stand at consecutive positions and see all before them; a tree of guesses would say its positions here.
    """

    request_id: int
    start: int
    n: int
    token_ids: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    uses: tuple[RowUse, ...]
    participants: tuple[int, ...] = (0,)
    adapter: int | None = None
    state_slot: int | None = None

    @property
    def known_end(self) -> int:
        """The position after the last known token that is computed: guesses come behind it."""
        last = self.uses[-1] if self.uses else None
        return self.start + self.n - (len(last.draft_token_ids) if isinstance(last, Verify) else 0)

    @property
    def output_offsets(self) -> tuple[int, ...]:
        """Rows of the n whose logits are needed, ascending."""
        return tuple(offset for use in self.uses for offset in range(use.first, use.first + use.rows))

    @property
    def most_tokens(self) -> int:
        """Tokens that the item may yield."""
        return sum(use.most_tokens for use in self.uses)


@dataclass(frozen=True, slots=True)
class BlockMove:
    """Copy all token slots of `source` to `target`, in the states of a cache group of every participant.

    kind: 'copy' from block to block; 'store' from a block to a slot of the tier; 'load' from such a slot to a block.
    """

    source: int
    target: int
    kind: Literal["copy", "store", "load"] = "copy"
    group: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: its index, its items (at least one), the sum of their n, and who was preempted to make it.

    moves:  copies of blocks to be made before the items are computed: all stores, then all loads, then all copies.
            Within a kind and a group no target is a source, and none is named twice.
    """

    step: int
    items: tuple[StepItem, ...]
    total_tokens: int
    preempted: tuple[int, ...] = ()
    moves: tuple[BlockMove, ...] = ()

    @property
    def total_output_rows(self) -> int:
        """Rows with logits or hidden states, over all items."""
        return sum(use.rows for item in self.items for use in item.uses)

    @property
    def participants(self) -> tuple[int, ...]:
        """The models that compute the step, each all of its rows, in ascending order."""
        named = {item.participants for item in self.items}
        return named.pop() if len(named) == 1 else tuple(sorted({index for some in named for index in some}))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token: natural logarithm of its probability in the raw distribution, and the most likely ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a request, a stop token included; logprobs are empty unless they were asked for.

    Made where they are sampled and passed on as they are, by the scheduler too, which looks at the ids only.

    origin:  the request whose sequence they continue; None: their own. A beam that continues another one forgets its
             own tokens and goes on from what the other has computed. Both are items of the same step, of one prompt and
             salt, with all their known tokens computed.
    """

    request_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    origin: int | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """New tokens by request id, up to the `most_tokens` of its item, and the seconds that stores and loads took.

    whole: requests whose answer ends with these tokens, or without any more: nothing can follow.

    An absent request has none. One whose item asks for tokens and gets none is asked again in the next step. Seconds
    of 0 are none that were measured.
    """

    tokens: Mapping[int, Tokens] = field(default_factory=dict)
    stored_s: float = 0.0
    loaded_s: float = 0.0
    whole: frozenset[int] = frozenset()

    @staticmethod
    def of(token_ids: Mapping[int, tuple[int, ...]]) -> "StepResult":
        """Of ids alone."""
        return StepResult({request_id: Tokens(request_id, ids) for request_id, ids in token_ids.items()})


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a request, once and last; its tokens came before, all of them.

    cached_tokens:  prompt tokens that came from the prefix cache at first admission.
    """

    request_id: int
    reason: FinishReason
    cached_tokens: int = 0


Event = Tokens | Ended
"""What happened to a request: Tokens any number of times, then Ended."""
