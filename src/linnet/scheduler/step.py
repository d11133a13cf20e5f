# SPDX-License-Identifier: Apache-2.0
"""Filling one step: the token budget, the output rows, and the items that spend them."""

from .config import SchedulerConfig
from .plan import StepItem
from .request import Request


class StepBuilder:
    """The items of the step being planned and what is left for more of them."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.items: list[StepItem] = []
        self._config = config
        self._tokens = config.token_budget
        self._rows = config.output_rows

    @property
    def has_room(self) -> bool:
        """Whether another item of one token and one output row fits."""
        return self._tokens > 0 and self._rows > 0

    def take(self, request: Request, behind: int) -> None:
        """Plan as many of the request's remaining tokens as fit; it must hold the blocks for them.

        `behind` running requests are still to come: one token and one row stay reserved for each, so that a long
        prompt never makes those stall who only want their next token. Mutates the builder only.
        """
        tokens = max(self._tokens - behind, 1)
        rows = max(self._rows - behind, 1)
        n = request.tokens_within_rows(min(request.remaining, self._config.chunk_tokens, tokens), rows)
        start, end = request.computed, request.computed + n
        held = -(-end // self._config.block_size)
        item = StepItem(
            request_id=request.request_id,
            start=start,
            n=n,
            token_ids=tuple(request.known[start:end]),
            blocks=(tuple(request.block_ids[:held]),),
            output_offsets=request.output_offsets(n),
            samples=end == len(request.known) and request.max_new_tokens > 0,
        )
        self.items.append(item)
        self._tokens -= n
        self._rows -= len(item.output_offsets)
