# SPDX-License-Identifier: Apache-2.0
"""One simulated run: random requests come, are aborted, time out; every law is checked after every call."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import get_args

from digest_model import VOCABULARY, DigestModel, PoisoningPools, expected_tokens

from linnet.scheduler import CacheGroup, Ended, Event, Kept, Request, Scheduler, SchedulerConfig, StepPlan
from linnet.scheduler.config import Policy, Reserve
from linnet.scheduler.groups import most_blocks

TRIALS = int(os.environ.get("LINNET_SIM_TRIALS", "30"))


@dataclass(frozen=True)
class Arrival:
    """A request, as its constructor's arguments (requests are mutable and serve one run), and when it comes."""

    step: int
    fields: dict[str, object]

    def request(self) -> Request:
        return Request(**self.fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Abort:
    """Abort `request_id` at a step, in one of the phases 'before', 'launched', 'collected', 'committed'."""

    step: int
    phase: str
    request_id: int


@dataclass(frozen=True)
class Workload:
    arrivals: tuple[Arrival, ...]
    aborts: tuple[Abort, ...] = ()

    @property
    def longest_tokens(self) -> int:
        """Prompt plus new tokens of the longest request."""
        requests = [arrival.request() for arrival in self.arrivals]
        return max(request.prompt_tokens + request.max_new_tokens for request in requests)

    @property
    def most_slots(self) -> int:
        """Token slots of the longest request: the smallest pool that accepts the workload."""
        return max(arrival.request().most_slots for arrival in self.arrivals)


def random_workload(random: Random, clients: int, aborts: bool = False, deadlines: bool = False) -> Workload:
    """Prompts repeat or share beginnings and differ much in length; some requests score, some stop early."""
    stems = [[random.randrange(11) for _ in range(24)] for _ in range(3)]
    arrivals: list[Arrival] = []
    for request_id in range(clients):
        stem = random.choice(stems)[: random.randrange(25)]
        tail = [random.randrange(11) for _ in range(random.choice((1, 1, 2, 5, 9)))]
        prompt = tuple(stem + tail)
        origin = random.choice(arrivals).request() if arrivals and random.random() < 0.25 else None
        if origin is not None:
            prompt = origin.prompt_token_ids
        scores = random.random() < 0.15
        new = random.choice((1, 2, 5, 9, 30)) if not scores or random.random() < 0.5 else 0
        step = random.choice((0, 0, random.randrange(12), random.randrange(40)))
        salt = random.choice((b"", b"", b"tenant"))
        if origin is not None:  # samples of one prompt come together, most of them from the same tenant
            step = random.choice((step, int(origin.arrival_s), int(origin.arrival_s)))
            salt = random.choice((salt, origin.cache_salt))
        fields: dict[str, object] = {
            "request_id": request_id,
            "prompt_token_ids": prompt,
            "max_new_tokens": new,
            "stop_token_ids": frozenset(random.sample(range(11), random.choice((0, 1, 3)))),
            "min_new_tokens": random.choice((0, 0, min(2, new), new)),
            "arrival_s": float(step),
            "priority": random.randrange(3),
            "tenant": random.choice((b"", b"one", b"two")),
            "cache_salt": salt,
            "fork_of": None if origin is None else origin.request_id,
            "score_prompt": scores,
            "deadline_s": step + random.choice((0.0, 3.0, 20.0)) if deadlines and random.random() < 0.2 else None,
        }
        arrivals.append(Arrival(step, fields))
    planned: list[Abort] = []
    if aborts:
        for request_id in random.sample(range(clients), clients // 2):
            phase = random.choice(("before", "launched", "collected", "committed"))
            planned.append(Abort(random.randrange(40), phase, request_id))
    return Workload(tuple(arrivals), tuple(planned))


def random_config(
    random: Random,
    workload: Workload,
    one_sequence_only: bool = False,
    windows: Sequence[int | None] = (),
    **fixed: object,
) -> SchedulerConfig:
    """Small budgets and pools, so that every limit is hit; `fixed` overrides what is drawn, and `windows` those of the
    cache groups."""
    block_size = int(fixed.get("block_size", random.choice((1, 2, 4, 16))))  # type: ignore[call-overload]
    sequences = int(fixed.get("max_sequences", random.choice((1, 2, 4, 16))))  # type: ignore[call-overload]
    one_sequence = -(-workload.most_slots // block_size)
    drawn: dict[str, object] = {
        "block_size": block_size,
        "num_blocks": int(one_sequence * random.choice((1,) if one_sequence_only else (1, 1, 1.5, 3, 10))),
        "max_model_len": workload.longest_tokens,
        "token_budget": random.choice((1, 3, 8, 16, 64)),
        "max_sequences": sequences,
        "max_chunk_tokens": random.choice((None, None, 1, 4)),
        "max_output_rows": random.choice((None, sequences, sequences + 3)),
        "prefix_cache": random.random() < 0.5,
        "swap_blocks": random.choice((0, 1, 5, 20, 200)),
        "kept_share": random.choice((0.0, 0.4, 1.0)),
        "policy": random.choice(get_args(Policy)),
        "ageing_s": random.choice((None, None, 2.0)),
        "preempt_every": random.choice((None, None, 1, 2, 3, 7)),
        "step_budget_s": random.choice((None, 0.001, 0.02)),
    }
    drawn["reserve"] = Random(repr(drawn)).choice(get_args(Reserve))  # of what was drawn: nothing after it changes
    chosen = drawn | fixed
    if not chosen["prefix_cache"]:
        chosen["swap_blocks"] = 0
    windows = windows or random.choice(WINDOWS)
    return with_windows(SchedulerConfig(**chosen), random, workload, windows)  # type: ignore[arg-type]


WINDOWS: Sequence[Sequence[int | None]] = (
    (None,), (None,), (6,), (None, 5), (None, 17), (None, 40), (None, 9, 2), (21, 3)
)  # fmt: skip


def with_windows(
    config: SchedulerConfig, random: Random, workload: Workload, windows: Sequence[int | None]
) -> SchedulerConfig:
    """A cache group for each window (None: it sees everything); those of windows have pools with room for one sequence
    or several."""
    groups = []
    for window in windows:
        one_sequence = most_blocks(window, workload.most_slots, config.chunk_tokens, config.block_size)
        blocks = int(one_sequence * random.choice((1, 1, 1.5, 3, 10)))
        swap = random.choice((1, 5, 20, 200)) if config.swap_blocks else 0
        groups.append(CacheGroup(blocks, window, swap))
    first, *more = groups
    if first.window is None:
        return replace(config, more_groups=tuple(more))
    return replace(config, num_blocks=first.num_blocks, window=first.window, more_groups=tuple(more))


@dataclass
class Run:
    """What came out: per request its tokens and finish reason, plus what the pool and the counters say at the end."""

    scheduler: Scheduler
    model: DigestModel
    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    steps: int = 0

    def take(self, events: tuple[Event, ...]) -> None:
        for event in events:
            assert event.request_id not in self.reasons, "an event after 'finished'"
            self.tokens.setdefault(event.request_id, ())
            if isinstance(event, Ended):
                self.reasons[event.request_id] = event.reason
                self.cached_tokens[event.request_id] = event.cached_tokens
            else:
                assert event.token_ids, "an event that says nothing"
                self.tokens[event.request_id] += event.token_ids


def simulate(
    workload: Workload,
    config: SchedulerConfig,
    withholds: Random | None = None,
    guesses: Random | None = None,
    copy_s: float = 0.0,
) -> Run:
    """Drive the real scheduler to the end of the workload and check every law; returns the run for comparisons.

    `guesses` makes guesses at what requests generate, right and wrong ones; `copy_s`: see `DigestModel`.
    """
    pools = PoisoningPools(config)
    scheduler = Scheduler(config, pools)
    run = Run(scheduler, DigestModel(pools, withholds, copy_s=copy_s))
    arrivals = sorted(workload.arrivals, key=lambda arrival: arrival.step)
    # Every delivered token costs at most one whole recompute of one request; nobody else may be blocked meanwhile.
    work = sum(_most_steps(arrival.request()) for arrival in arrivals)
    deadlock_step = 100 + 2 * work

    def abort(phase: str) -> None:
        for planned in workload.aborts:
            if (planned.step, planned.phase) == (run.steps, phase):
                scheduler.abort(planned.request_id)
                scheduler.check()

    while arrivals or scheduler.has_work:
        while arrivals and arrivals[0].step <= run.steps:
            request = arrivals.pop(0).request()
            run.model.register(request)
            scheduler.add(request)
            if config.kept_share:  # conversations come and go
                owner, lasting = bytes([request.request_id % 3]), request.request_id % 2 == 0
                scheduler.keep(Kept(owner, request.prompt_token_ids, request.cache_salt, lasting=lasting))
        abort("before")
        if guesses is not None:
            guess(run, guesses)
        plan = scheduler.schedule(float(run.steps))
        scheduler.check()
        if plan is None:
            run.take(scheduler.take_events())
        else:
            assert plan.total_tokens <= config.token_budget
            assert plan.total_output_rows <= config.output_rows
            assert len(plan.items) <= config.max_sequences
            assert all(item.n <= config.chunk_tokens for item in plan.items)
            abort("launched")
            result = run.model.run(plan)
            abort("collected")
            run.take(scheduler.commit(plan, result, run.steps + step_s(plan) + result.stored_s + result.loaded_s))
            scheduler.check()
        abort("committed")
        run.take(scheduler.take_events())
        run.steps += 1
        assert run.steps < deadlock_step, f"no end after {run.steps} steps"
    _check_end(workload, run)
    return run


def guess(run: Run, random: Random) -> None:
    """Up to four guesses for everybody, each wrong now and then."""
    for request in run.model.requests.values():
        right = expected_tokens(request)[request.generated_tokens :][: random.randrange(5)]
        request.draft_token_ids = tuple(
            token_id if random.random() < 0.8 else random.randrange(VOCABULARY) for token_id in right
        )


def step_s(plan: StepPlan) -> float:
    """What the clock says a step took; less than the time between two steps."""
    return min(0.002 + 0.001 * plan.total_tokens, 0.5)


def _most_steps(request: Request) -> int:
    deliveries = request.max_new_tokens + 1 + (request.prompt_tokens if request.score_prompt else 0)
    return deliveries * (request.prompt_tokens + request.max_new_tokens) + 40


def _check_end(workload: Workload, run: Run) -> None:
    counters = run.scheduler.counters()
    assert (counters.used_blocks, counters.running_requests, counters.waiting_requests) == (0, 0, 0)
    assert counters.free_blocks + counters.cached_blocks == counters.total_blocks
    if not run.scheduler.config.prefix_cache:
        assert counters.cached_blocks == counters.prefix_query_tokens == 0
    assert sum(counters.finished.values()) == len(run.reasons) == len(workload.arrivals)
    for arrival in workload.arrivals:
        request = arrival.request()
        right, tokens = expected_tokens(request), run.tokens[request.request_id]
        if run.reasons[request.request_id] in ("abort", "timeout", "queue_timeout"):
            assert tokens == right[: len(tokens)]
            continue
        assert tokens == right, f"request {request.request_id} generated {tokens} instead of {right}"
        stopped = bool(right) and right[-1] in request.stop_token_ids and len(right) > request.min_new_tokens
        assert run.reasons[request.request_id] == ("stop" if stopped else "length")
        if request.score_prompt:
            positions = run.model.scored_positions[request.request_id]
            assert positions == list(range(request.prompt_tokens - 1)), "every prompt token is scored once, in order"
            assert run.cached_tokens[request.request_id] == 0
