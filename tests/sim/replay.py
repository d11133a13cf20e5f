# SPDX-License-Identifier: Apache-2.0
"""Replays requests through the real scheduler, in virtual time or in that of a real engine, and notes what they felt.

One loop for both: a World has a clock, takes requests and makes steps. In `VirtualWorld` a step takes the seconds that
a function of its plan says; bench/trace_engine.py brings the world of a real engine. A Gate decides when requests that
have come are handed over: at once (continuous batching), or when a batch is formed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Protocol

from linnet.scheduler import Ended, Event, Request, Scheduler, SchedulerConfig, StepPlan, StepResult, Tokens

PROMPT_WEIGHT, NEW_WEIGHT = 1, 2
"""What a token of a prompt and a new one count where service to tenants is compared: as the 'fair' policy counts."""


@dataclass(frozen=True)
class Asked:
    """A request of a trace: when it comes, how long its prompt and its answer are, whose it is.

    most_tokens: what it allows the answer to be; 0: as long as it is. The scheduler knows this number only.
    shared:      names of the prompt's first pieces, each of `piece_tokens` tokens; equal names are equal tokens.
    """

    arrival_s: float
    prompt_tokens: int
    new_tokens: int
    tenant: bytes = b""
    most_tokens: int = 0
    shared: tuple[int, ...] = ()
    piece_tokens: int = 0

    @property
    def limit(self) -> int:
        """Its max_new_tokens."""
        return max(self.most_tokens, self.new_tokens)

    def prompt(self, request_id: int, vocabulary: int) -> tuple[int, ...]:
        """Token ids below `vocabulary`: those of the shared pieces, then some that nobody else has."""
        ids: list[int] = []
        for name in self.shared:
            ids += Random(name).choices(range(vocabulary), k=self.piece_tokens)
        own = Random(-1 - request_id).choices(range(vocabulary), k=max(self.prompt_tokens - len(ids), 0))
        return (*ids, *own)[: self.prompt_tokens]


@dataclass
class Felt:
    """What became of a request; seconds on the world's clock. begun_s: the end of the step that computed it first."""

    asked: Asked
    begun_s: float = inf
    first_s: float = inf
    last_s: float = inf
    tokens: int = 0

    @property
    def completion_s(self) -> float:
        """From its arrival to its last token."""
        return self.last_s - self.asked.arrival_s

    @property
    def first_token_s(self) -> float:
        """From its arrival to its first token."""
        return self.first_s - self.asked.arrival_s


@dataclass
class Replay:
    """What came out; requests by their place in the list that was asked.

    served:         (when, tenant, weighted tokens that were computed for the first time), of every item of every step.
    computed_again: tokens that were computed although they had been.
    waste:          the share of slots of blocks that requests took and that never held a token.
    """

    felt: list[Felt]
    served: list[tuple[float, bytes, int]] = field(default_factory=list)
    computed_again: int = 0
    preemptions: int = 0
    waste: float = 0.0
    steps: int = 0
    begin_s: float = 0.0
    end_s: float = 0.0

    @property
    def new_tokens(self) -> int:
        """Of all answers."""
        return sum(one.tokens for one in self.felt)


class World(Protocol):
    """Where requests are computed. `on_step` is told of each plan when it is done."""

    on_step: Callable[[StepPlan], None]

    @property
    def scheduler(self) -> Scheduler:
        """The real one."""
        raise NotImplementedError

    def now(self) -> float:
        """Seconds; arrivals are on the same clock."""
        raise NotImplementedError

    def wait(self, until_s: float) -> None:
        """Nothing is there to be done before then."""
        raise NotImplementedError

    def submit(self, request_id: int, asked: Asked) -> None:
        """Take a request."""
        raise NotImplementedError

    def step(self) -> Iterable[Tokens]:
        """Make a step; returns its tokens."""
        raise NotImplementedError


StepSeconds = Callable[[StepPlan], float]
STOP = 0


class VirtualWorld:
    """The real scheduler, steps that take what `step_s` says, and a clock that jumps."""

    def __init__(
        self, config: SchedulerConfig, step_s: StepSeconds, vocabulary: int = 50_000, check: bool = False
    ) -> None:
        self.scheduler = Scheduler(config)
        self.on_step: Callable[[StepPlan], None] = lambda plan: None
        self._step_s, self._vocabulary, self._check = step_s, vocabulary, check
        self._now = 0.0
        self._left: dict[int, int] = {}

    def now(self) -> float:
        """See World."""
        return self._now

    def wait(self, until_s: float) -> None:
        """See World."""
        self._now = max(self._now, until_s)

    def submit(self, request_id: int, asked: Asked) -> None:
        """See World."""
        self._left[request_id] = asked.new_tokens
        self.scheduler.add(
            Request(
                request_id=request_id,
                prompt_token_ids=asked.prompt(request_id, self._vocabulary),
                max_new_tokens=asked.limit,
                stop_token_ids=frozenset({STOP}),
                arrival_s=asked.arrival_s,
                tenant=asked.tenant,
            )
        )

    def step(self) -> list[Tokens]:
        """See World. An answer is ones, and ends with a stop token."""
        plan = self.scheduler.schedule(self._now)
        if plan is None:
            return []
        self._now += self._step_s(plan)
        ids = {item.request_id: self._next(item.request_id) for item in plan.items if item.most_tokens}
        events: tuple[Event, ...] = self.scheduler.commit(plan, StepResult.of(ids), self._now)
        if self._check:
            self.scheduler.check()
        self.on_step(plan)
        assert all(event.reason in ("stop", "length") for event in events if isinstance(event, Ended))
        return [event for event in events if isinstance(event, Tokens)]

    def _next(self, request_id: int) -> tuple[int]:
        self._left[request_id] -= 1
        return (1,) if self._left[request_id] else (STOP,)


class Gate:
    """Continuous batching: everybody is handed over at once. Others say when a batch is formed."""

    whole = False
    """Whether answers are given when the whole batch is done."""

    def ready(self, waiting: Sequence[Asked], idle: bool, more: bool, now: float) -> int:
        """How many of those waiting are handed over now; `more` says whether any are still to come."""
        return len(waiting)

    def wakes_s(self, waiting: Sequence[Asked]) -> float:
        """When it wants to be asked again although nothing happens."""
        return inf


class StaticBatches(Gate):
    """Batches of a fixed size: formed when nobody is computed and so many are there, done when the last one is."""

    whole = True

    def __init__(self, size: int) -> None:
        self._size = size

    def ready(self, waiting: Sequence[Asked], idle: bool, more: bool, now: float) -> int:
        """See Gate."""
        return min(len(waiting), self._size) if idle and (len(waiting) >= self._size or not more) else 0


class DynamicBatches(Gate):
    """Batches of whoever comes within a window after the first one, so many at most; done when the last one is."""

    whole = True

    def __init__(self, size: int, window_s: float) -> None:
        self._size, self._window_s = size, window_s

    def ready(self, waiting: Sequence[Asked], idle: bool, more: bool, now: float) -> int:
        """See Gate."""
        formed = len(waiting) >= self._size or now >= self.wakes_s(waiting) or not more
        return min(len(waiting), self._size) if idle and formed else 0

    def wakes_s(self, waiting: Sequence[Asked]) -> float:
        """See Gate."""
        return waiting[0].arrival_s + self._window_s if waiting else inf


class _Notes:
    """Fills a Replay from plans and tokens."""

    def __init__(self, asked: Sequence[Asked], world: World) -> None:
        self.found = Replay([Felt(one) for one in asked], begin_s=world.now())
        self._world = world
        self._reached = [0] * len(asked)
        world.on_step = self._step

    def _step(self, plan: StepPlan) -> None:
        now = self._world.now()
        for item in plan.items:
            end, reached = item.start + item.n, self._reached[item.request_id]
            fresh = min(item.n, max(end - reached, 0))
            self._reached[item.request_id] = max(end, reached)
            self.found.computed_again += item.n - fresh
            felt = self.found.felt[item.request_id]
            felt.begun_s = min(felt.begun_s, now)
            weight = PROMPT_WEIGHT * max(fresh - item.most_tokens, 0) + NEW_WEIGHT * item.most_tokens
            self.found.served.append((now, felt.asked.tenant, weight))
        self.found.steps += 1

    def tokens(self, event: Tokens, now: float) -> None:
        """Somebody got tokens."""
        felt = self.found.felt[event.request_id]
        felt.first_s = min(felt.first_s, now)
        felt.last_s = now
        felt.tokens += len(event.token_ids)


def replay(world: World, asked: Sequence[Asked], gate: Gate | None = None) -> Replay:
    """Hands the requests to the world when they come, or as the gate says, and steps until all have been answered."""
    gate = gate or Gate()
    notes = _Notes(asked, world)
    coming = deque(sorted(range(len(asked)), key=lambda index: asked[index].arrival_s))
    waiting: deque[int] = deque()
    batch: list[int] = []
    while coming or waiting or world.scheduler.has_work:
        now = world.now()
        while coming and asked[coming[0]].arrival_s <= now:
            waiting.append(coming.popleft())
        there = [asked[index] for index in waiting]
        idle = not world.scheduler.has_work
        for _ in range(gate.ready(there, idle, bool(coming), now)):
            batch.append(waiting.popleft())
            world.submit(batch[-1], asked[batch[-1]])
        if not world.scheduler.has_work:
            world.wait(min(asked[coming[0]].arrival_s if coming else inf, gate.wakes_s(there)))
            continue
        for event in world.step():
            notes.tokens(event, world.now())
        if gate.whole and not world.scheduler.has_work:
            for index in batch:
                notes.found.felt[index].last_s = world.now()
            batch.clear()
    found = notes.found
    counters = world.scheduler.counters()
    found.end_s, found.preemptions = world.now(), counters.preemptions
    found.waste = counters.unused_slots / max(counters.reserved_slots, 1)
    assert all(one.tokens == one.asked.new_tokens for one in found.felt), "an answer has another length"
    return found
