# SPDX-License-Identifier: Apache-2.0
"""What crosses the scheduler's door: the plan of a step, its result, and the events that come of it.

Frozen plain values of integers: they can be logged, compared, replayed and sent to another process as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .request import FinishReason


@dataclass(frozen=True, slots=True)
class StepItem:
    """One request's part of a step: compute the tokens at positions [start, start + n).

    token_ids:        those n tokens.
    blocks:           per cache group, the blocks that hold positions [0, start + n), in order; position p is slot
                      p % block_size of block p // block_size. One group today.
    output_offsets:   rows of the n whose logits are needed, ascending: the last one when the item reaches the end of
                      the known tokens; with `score_prompt` also every prompt row that was not delivered before (a
                      recompute after a preemption does not deliver a row twice).
    samples:          whether a new token is to be sampled from the last row.
    draft_token_ids:  speculative tokens after the n; empty today.
    """

    request_id: int
    start: int
    n: int
    token_ids: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    output_offsets: tuple[int, ...]
    samples: bool
    draft_token_ids: tuple[int, ...] = ()
    adapter: int | None = None
    state_slot: int | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: its index, its items (at least one), the sum of their n, and who was preempted to make it."""

    step: int
    items: tuple[StepItem, ...]
    total_tokens: int
    preempted: tuple[int, ...] = ()

    @property
    def total_output_rows(self) -> int:
        """Rows with logits over all items."""
        return sum(len(item.output_offsets) for item in self.items)


@dataclass(frozen=True, slots=True)
class StepResult:
    """New token ids per request id: 0 … k + 1 for an item with `samples` and k draft tokens.

    An absent request has none. An item that samples and gets none is asked again in the next step.
    """

    token_ids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a request: 'tokens' any number of times, then 'finished' exactly once and last.

    token_ids:      the new tokens of this step, the stop token included; a 'finished' event carries the last ones, and
                    none when the request ended between steps (abort, timeout).
    cached_tokens:  prompt tokens that came from the prefix cache at first admission.
    """

    kind: Literal["tokens", "finished"]
    request_id: int
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
