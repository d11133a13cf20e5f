# SPDX-License-Identifier: Apache-2.0
"""What crosses the scheduler's door: the plan of a step, its result, and the events that come of it.

Frozen plain values of integers: they can be logged, compared, replayed and sent to another process as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
class TokenLogprob:
    """A chosen token: natural logarithm of its probability in the raw distribution, and the most likely ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a request, a stop token included; logprobs are empty unless they were asked for.

    Made where they are sampled and passed on as they are, by the scheduler too, which looks at the ids only.
    """

    request_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """New tokens by request id: 0 … k + 1 for an item with `samples` and k draft tokens.

    An absent request has none. An item that samples and gets none is asked again in the next step.
    """

    tokens: Mapping[int, Tokens] = field(default_factory=dict)

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
