# SPDX-License-Identifier: Apache-2.0
"""The policies: first come first served, priority, multi-level feedback queue, shortest predicted first, fair share."""

from collections import Counter
from dataclasses import dataclass

from .config import Lengths, SchedulerConfig
from .lengths import MOST_TENANTS, PredictedLengths
from .policy import Key, OrderingPolicy
from .request import Request


class FirstComeFirstServed(OrderingPolicy):
    """By arrival."""

    def key(self, request: Request) -> Key:
        """See OrderingPolicy."""
        return (request.arrival_s, request.sequence)


class Priority(OrderingPolicy):
    """By priority, smaller first; with ageing, who has waited `ageing_s` longer is as good as one level higher.

    All requests age alike, so their order never changes: a level counts as `ageing_s` seconds of arrival.
    """

    def __init__(self, ageing_s: float | None) -> None:
        self._ageing_s = ageing_s

    def key(self, request: Request) -> Key:
        """See OrderingPolicy."""
        if self._ageing_s is None:
            return (request.priority, request.arrival_s, request.sequence)
        return (request.arrival_s + request.priority * self._ageing_s, request.sequence)


@dataclass(slots=True)
class _Queued:
    level: int
    entered_s: float
    served_s: float
    tokens: int = 0  # served at this level


class FeedbackQueue(OrderingPolicy):
    """Skip-join multi-level feedback queue (Wu et al., FastServe, 2023, section 4.1).

    Level i serves QUANTUM_TOKENS * 2**i tokens of a request, prompt and new ones, then hands it down. A request joins
    at the first level that can serve its whole prompt. Who was not served for `starvation_s` goes to the back of
    level 0.

    So nobody waits for ever: at level 0 only those that entered it earlier come first, and each leaves it after
    QUANTUM_TOKENS tokens. Unlike there, where making way costs a copy, who runs keeps its place until it has delivered
    what would be lost (see `Scheduler._make_way`).
    """

    moving = True
    preempts = True
    QUANTUM_TOKENS = 32
    LEVELS = 12

    def __init__(self, starvation_s: float) -> None:
        self._starvation_s = starvation_s
        self._queued: dict[int, _Queued] = {}

    def added(self, request: Request) -> None:
        """See OrderingPolicy."""
        level = 0
        while self._quantum(level) < request.prompt_tokens and level < self.LEVELS - 1:
            level += 1
        self._queued[request.request_id] = _Queued(level, request.arrival_s, request.arrival_s)

    def key(self, request: Request) -> Key:
        """See OrderingPolicy."""
        queued = self._queued[request.request_id]
        return (queued.level, queued.entered_s, request.sequence)

    def tick(self, now: float) -> None:
        """Bring the starving to level 0."""
        for queued in self._queued.values():
            if queued.level and now - max(queued.served_s, queued.entered_s) > self._starvation_s:
                queued.level, queued.entered_s, queued.tokens = 0, now, 0

    def served(self, request: Request, computed_tokens: int, new_tokens: int, now: float) -> None:
        """Count, and hand down."""
        queued = self._queued[request.request_id]
        queued.served_s = now
        queued.tokens += computed_tokens
        if queued.tokens >= self._quantum(queued.level) and queued.level < self.LEVELS - 1:
            queued.level, queued.entered_s, queued.tokens = queued.level + 1, now, 0

    def ended(self, request: Request) -> None:
        """See OrderingPolicy."""
        del self._queued[request.request_id]

    def _quantum(self, level: int) -> int:
        return self.QUANTUM_TOKENS << level


class ShortestPredicted(OrderingPolicy):
    """By the tokens that are still to be computed, as predicted: first who is done soonest.

    How long an answer is predicted to be: see `PredictedLengths`.

    A shorter one overtakes only if it comes before AGEING times the tokens by which it is shorter have been computed.
    So nobody is overtaken by who comes after AGEING times its own tokens: on a slow machine as on a fast one, which
    seconds of waiting would not tell apart.
    """

    moving = True
    AGEING = 64

    def __init__(self, lengths: Lengths) -> None:
        self._answers = PredictedLengths(lengths)
        self._came_at: dict[int, int] = {}  # tokens computed by then, of everybody
        self._computed = 0

    def added(self, request: Request) -> None:
        """See OrderingPolicy."""
        self._answers.added(request)
        self._came_at[request.request_id] = self._computed

    def key(self, request: Request) -> Key:
        """See OrderingPolicy."""
        work = request.prompt_tokens + self._answers.of(request) - request.computed
        return (self.AGEING * max(work, 0) + self._came_at[request.request_id], request.sequence)

    def served(self, request: Request, computed_tokens: int, new_tokens: int, now: float) -> None:
        """See OrderingPolicy."""
        self._computed += computed_tokens
        self._answers.served(request)

    def ended(self, request: Request) -> None:
        """See OrderingPolicy."""
        self._answers.ended(request)
        del self._came_at[request.request_id]


class FairShare(OrderingPolicy):
    """By what each tenant has had: virtual token counters (Sheng et al., Fairness in Serving LLMs, 2024, section 4).

    A computed prompt token counts 1, a new one NEW_TOKEN. Who comes back after having been away does not bring what was
    not used meanwhile: the counter is lifted to the least of those that have requests here.
    """

    moving = True
    NEW_TOKEN = 2

    def __init__(self) -> None:
        self._counters: dict[bytes, float] = {}
        self._unfinished: Counter[bytes] = Counter()

    def added(self, request: Request) -> None:
        """See OrderingPolicy."""
        tenant = request.tenant
        if not self._unfinished[tenant]:
            least = min((self._counters[other] for other in self._unfinished if self._unfinished[other]), default=0.0)
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), least)
        self._unfinished[tenant] += 1

    def key(self, request: Request) -> Key:
        """See OrderingPolicy."""
        return (self._counters[request.tenant], request.arrival_s, request.sequence)

    def served(self, request: Request, computed_tokens: int, new_tokens: int, now: float) -> None:
        """A step that computes a generated token's keys makes the next one: it is the new token that counts."""
        self._counters[request.tenant] += max(computed_tokens - new_tokens, 0) + self.NEW_TOKEN * new_tokens

    def ended(self, request: Request) -> None:
        """See OrderingPolicy. Who is away and behind everybody would be lifted anyway, and is forgotten."""
        self._unfinished[request.tenant] -= 1
        if not self._unfinished[request.tenant]:
            del self._unfinished[request.tenant]
        if not self._unfinished:
            self._counters.clear()
        elif len(self._counters) > MOST_TENANTS:
            least = min(self._counters[tenant] for tenant in self._unfinished)
            self._counters = {
                tenant: value for tenant, value in self._counters.items() if value > least or tenant in self._unfinished
            }


LONGEST_WAIT_S = 30.0
"""After which the feedback queue calls it starving, unless the config says otherwise."""


def policy_of(config: SchedulerConfig) -> OrderingPolicy:
    """A fresh policy, as configured."""
    if config.policy == "priority":
        return Priority(config.ageing_s)
    if config.policy == "mlfq":
        return FeedbackQueue(LONGEST_WAIT_S if config.ageing_s is None else config.ageing_s)
    if config.policy == "shortest":
        return ShortestPredicted(config.predict_length)
    return FairShare() if config.policy == "fair" else FirstComeFirstServed()
