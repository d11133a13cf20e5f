# SPDX-License-Identifier: Apache-2.0
"""Filling one step: the token budget, the output rows, the seconds, and the items that spend them."""

from math import inf

from .config import SchedulerConfig
from .cost import StepCost, Work
from .plan import StepItem
from .policy import OrderedRequests
from .request import Request

LEAST_SHARE = 0.25
"""Of the step's seconds that prompts get at least, however long the others take: a budget nobody can keep would
otherwise stop them altogether."""


class StepBuilder:
    """The items of the step being planned and what is left for more of them."""

    def __init__(self, config: SchedulerConfig, cost: StepCost, running: OrderedRequests) -> None:
        """`running` will be taken: each has one token reserved, of rows, outputs and seconds."""
        self.items: list[StepItem] = []
        self._config = config
        self._tokens = config.token_budget
        self._rows = config.output_rows
        self._cost = cost
        self._seconds = inf
        self._work = Work()  # planned or reserved; kept where seconds are counted
        self._reserved: dict[int, Work] = {}
        if config.step_budget_s is None or not cost.known:
            return
        if any(request.generated_tokens for request in running):
            contexts = {request.request_id: request.computed + 1 for request in running}
            self._reserved = {request_id: Work(1, 1, keys, keys) for request_id, keys in contexts.items()}
            self._work = Work(len(contexts), len(contexts), sum(contexts.values()), sum(contexts.values()))
            least = cost.expect(self._work) + LEAST_SHARE * config.step_budget_s
            self._seconds = max(config.step_budget_s, least)

    @property
    def has_room(self) -> bool:
        """Whether another item of one token and one output row fits; seconds are kept for everyone who is running."""
        return self._tokens > 0 and self._rows > 0

    @property
    def has_time(self) -> bool:
        """Whether there are seconds left for somebody new."""
        return self._seconds == inf or self._cost.expect(self._work.plus(Work.of(0, 1, 0))) <= self._seconds

    def fits_whole(self, request: Request) -> bool:
        """Whether all that the request has to compute fits, beside nobody who is still to come."""
        most = min(self._tokens, self._config.chunk_tokens)
        return (
            request.remaining <= most and request.tokens_within_rows(request.remaining, self._rows) == request.remaining
        )

    @property
    def seconds_left(self) -> float:
        """Until the step is as long as it may be, what is reserved counted; may be below 0."""
        return inf if self._seconds == inf else self._seconds - self._cost.expect(self._work)

    def spend(self, seconds: float) -> None:
        """Something else takes that long in this step."""
        self._seconds -= seconds

    def take_any_time(self) -> None:
        """Those for whom time was kept are not in the step after all."""
        self._seconds = inf

    def take(self, request: Request, behind: int) -> None:
        """Plan as many of the request's remaining tokens as fit; it must hold the blocks for them.

        `behind` running requests are still to come: one token and one row stay reserved for each, so that a long
        prompt never makes those stall who only want their next token. Mutates the builder only.
        """
        tokens = max(self._tokens - behind, 1)
        rows = max(self._rows - behind, 1)
        n = request.tokens_within_rows(min(request.remaining, self._config.chunk_tokens, tokens), rows)
        if self._seconds != inf and request.remaining > 1:
            n = self._within_seconds(request, n)
        start, end = request.computed, request.computed + n
        uses = request.uses(n)
        drafts: tuple[int, ...] = ()
        if request.draft_token_ids and request.state_slot is None:  # what a wrong guess did to a state stays
            slots = min(map(len, request.block_ids)) * self._config.block_size - end
            left = min(min(tokens, self._config.chunk_tokens) - n, rows - sum(use.rows for use in uses), slots)
            drafts = request.drafts_within(n, left)
            uses = request.uses(n, drafts)
        held = -(-(end + len(drafts)) // self._config.block_size)
        item = StepItem(
            request_id=request.request_id,
            start=start,
            n=n + len(drafts),
            token_ids=(*request.known[start:end], *drafts),
            blocks=tuple([tuple(blocks[:held]) for blocks in request.block_ids]),
            uses=uses,
            participants=request.participants,
            state_slot=request.state_slot,
            adapter=request.adapter,
        )
        self.items.append(item)
        self._tokens -= item.n
        self._rows -= sum(use.rows for use in uses)

    def _within_seconds(self, request: Request, most: int) -> int:
        """The most tokens, up to `most`, that the step has seconds for. Mutates what is planned so far."""
        self._work = self._work.minus(self._reserved.get(request.request_id, Work()))
        n = self._cost.most_tokens(self._seconds, self._work, request.computed, most)
        self._work = self._work.plus(Work.of(request.computed, n, sum(use.rows for use in request.uses(n))))
        return n
