# SPDX-License-Identifier: Apache-2.0
"""The scheduler: who computes what in the next step.

Owns the waiting and running requests, the block pool and the plan in flight. One plan is in flight at a time: between
schedule() and commit() requests may be added and aborted, and nothing the plan reads or writes is given away.

Order of side effects in schedule(): expire, forced preemption, the policy's order and who makes way, blocks of running
requests (preempting the last ones for lack of blocks), admissions; what a request finds in the tier is loaded where its
tokens are planned. In commit(): per item, in plan order: counters, new tokens, published blocks, release of what has
finished.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from linnet.errors import CapacityError, ConfigError

from .config import SchedulerConfig
from .cost import StepCost, Work
from .counters import SchedulerCounters
from .deadlines import Deadlines
from .gangs import Gangs
from .groups import Counts
from .invariants import InvariantError
from .plan import Ended, Event, StepItem, StepPlan, StepResult, Tokens
from .policies import policy_of
from .policy import Key, OrderedRequests
from .pools import BlockPools, total
from .request import FinishReason, Request, RequestState
from .reservations import Reservations
from .residency import Kept, Residency
from .step import StepBuilder
from .swapping import Swapping
from .validation import validate


class Scheduler:
    """Decides what each step computes, for whom and in which blocks.

    Every request that is added ends with exactly one Ended.
    """

    def __init__(self, config: SchedulerConfig, pools: BlockPools | None = None) -> None:
        """`pools` let a test watch the blocks; they must have the sizes, and the tiers, that the config says."""
        self.config = config
        self.pools = pools or BlockPools.of(config.groups, config.block_size, config.share_kept)
        assert (self.pools.groups, self.pools.block_size) == (config.groups, config.block_size)
        assert [tier.num_slots for _, tier in self.pools.tiers] == [
            group.swap_blocks for group in config.groups if group.swap_blocks
        ]
        self._residency = Residency(self.pools, config.prefix_cache, config.chunk_tokens, config.state_slots)
        self._policy = policy_of(config)
        self._reservations = Reservations(config.reserve, config.block_size)
        self._requests: dict[int, Request] = {}
        self._gangs = Gangs()
        self._waiting = OrderedRequests(self._key)
        self._running = OrderedRequests(self._key)
        self._deadlines = Deadlines(self._requests)
        self._plan: StepPlan | None = None
        self._in_flight: dict[int, Request] = {}
        self._cost = StepCost()
        self.swapping = Swapping(self._residency, self._cost) if self.pools.tiers else None
        self._scheduled_s = 0.0
        self._events: list[Event] = []
        self._sequence = 0
        self._steps = 0
        self._steps_since_forced = 0
        self._computed_tokens = 0
        self._preemptions = 0
        self._finished: Counter[FinishReason] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished or a plan is in flight."""
        return bool(self._requests) or self._plan is not None

    def counters(self) -> SchedulerCounters:
        """A snapshot for the metrics page. Mutates nothing."""
        pools, tiers = self.pools.pools, [tier for _, tier in self.pools.tiers]
        return SchedulerCounters(
            running_requests=len(self._running),
            waiting_requests=len(self._waiting),
            total_blocks=sum(pool.num_blocks for pool in pools),
            used_blocks=sum(pool.used_blocks for pool in pools),
            cached_blocks=sum(pool.cached_blocks for pool in pools),
            free_blocks=sum(pool.free_blocks for pool in pools),
            swap_blocks=sum(tier.num_slots for tier in tiers),
            swap_used_blocks=sum(map(len, tiers)),
            kept_blocks=sum(pool.cache.pinned_blocks for pool in pools),
            steps=self._steps,
            computed_tokens=self._computed_tokens,
            preemptions=self._preemptions,
            prefix_query_tokens=self._residency.prefix_query_tokens,
            prefix_hit_tokens=self._residency.prefix_hit_tokens,
            reserved_slots=self._residency.reserved_slots,
            unused_slots=self._residency.unused_slots,
            swapped_out_blocks=sum(tier.stored_blocks for tier in tiers),
            swapped_in_blocks=sum(tier.loaded_blocks for tier in tiers),
            kept_swapped_out_blocks=sum(pool.spilled_blocks for pool in pools),
            swap_declined_blocks=0 if self.swapping is None else self.swapping.declined_blocks,
            finished=dict(self._finished),
        )

    def add(self, request: Request) -> None:
        """Queue a fresh request. Mutates: the waiting queue, `request.sequence`; nothing when it raises.

        Raises ConfigError for a request that could never run here, CapacityError when the queue is full (try later).
        """
        if request.request_id in self._requests:
            raise ConfigError(f"request {request.request_id}: an unfinished request has this id; ids must be unique")
        validate(request, self.config)
        most = self.config.max_sequences + self.config.max_waiting_requests
        if len(self._requests) >= most:
            raise CapacityError(
                f"request {request.request_id}: the queue is full: {len(self._requests)} requests are unfinished and "
                f"{most} are accepted (max_sequences {self.config.max_sequences} + max_waiting_requests "
                f"{self.config.max_waiting_requests}); try again later"
            )
        request.sequence = self._sequence
        self._sequence += 1
        self._requests[request.request_id] = request
        self._gangs.add(request)
        self._policy.added(request)
        self._waiting.insert(request)
        self._deadlines.add(request)

    def abort(self, request_id: int, reason: FinishReason = "abort") -> bool:
        """End a request at any moment; False when it is unknown or has already finished.

        Mutates: as finishing does, and queues its Ended. While a plan in flight uses the request its blocks
        stay held until commit(), which ignores its result.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, reason)
        return True

    def keep(self, kept: Kept) -> None:
        """Keep the blocks of a sequence, those it has and those it will have, for whoever goes on from it.

        They are forgotten after all others, so nobody who runs is ever short for them. An owner keeps one sequence, the
        last it named; no tokens: none. `kept_share` of the pool is the most that is kept; then the owners that were
        heard of least recently keep theirs no longer, those that are not `lasting` first. Mutates the eviction order.
        """
        self._residency.keep(kept)

    def let_go_of(self, namespace: bytes) -> None:
        """Nobody goes on from sequences of this namespace any more: what was kept of them is forgotten as others are.
        Mutates the eviction order."""
        self._residency.let_go_of(namespace)

    def take_events(self) -> tuple[Event, ...]:
        """Events of aborts and deadlines since the last call or commit(), which hands them out too. Forgets them."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next step; None when no request is left (then see take_events()).

        Running requests come first, in policy order, each leaving one token for every running request behind it; what
        remains of the budget admits waiting ones. The first running request always gets its blocks, so every step
        computes something. Mutates: states, blocks and counters as the module says.
        """
        if self._plan is not None:
            raise InvariantError(f"schedule() was called while step {self._plan.step} is in flight; commit() it first")
        for request_id in self._deadlines.pop_due(now):
            self.abort(request_id, "queue_timeout" if self._requests[request_id].started_s is None else "timeout")
        preempted = self._preempt_by_force()
        self._policy.tick(now)
        if self._policy.moving:
            self._waiting.reorder()
            self._running.reorder()
        if self._policy.preempts:
            preempted += self._make_way()
        preempted += self._gather()
        step = StepBuilder(self.config, self._cost, self._running)
        if self.swapping is not None:
            self.swapping.begin(step)
        short_of_blocks = False
        done = 0
        while done < len(self._running) and step.has_room:
            together = self._gangs.running(self._running[done])
            victims = self._grow(together)
            preempted += victims
            short_of_blocks = short_of_blocks or bool(victims)
            if together[0] in victims:
                break
            for request in together:
                done += 1
                if step.has_room:
                    self._take(step, request, behind=len(self._running) - done)
        # Who was just preempted would be the first to be admitted, and take the blocks away again.
        may_admit = not short_of_blocks
        while may_admit and step.has_room and (admitted := self._admit_next(now, step)) is not None:
            self._take(step, admitted, behind=0)
        if not step.items and self._running:  # who loads did so slowly for the sake of those who have been preempted
            step.take_any_time()
            self._take(step, self._running[0], behind=0)
        self._scheduled_s = now
        return self._launch(step.items, preempted)

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> tuple[Event, ...]:
        """Take in the result of the plan in flight; returns all events since the last call.

        Mutates: per item `computed`, `scored`, `known`, the prefix table; finished requests release their blocks, and
        so do those that were aborted while the plan was in flight. Nothing when the result does not answer the plan.
        `now` tells what the step took; deadlines end requests in schedule(), never after their tokens have been paid.
        """
        self._check_result(plan, result)
        if self.config.step_budget_s is not None or self.swapping is not None:
            self._cost.learn(Work.of_plan(plan), now - self._scheduled_s - result.stored_s - result.loaded_s)
        if self.swapping is not None:
            self.swapping.learn(plan.moves, result)
        in_flight, self._in_flight, self._plan = self._in_flight, {}, None
        self._branch(in_flight, result)
        for item in plan.items:
            request = in_flight[item.request_id]
            if request.state is RequestState.FINISHED:
                self._residency.release(request)
            else:
                self._advance(request, item, result, now)
        return self.take_events()

    def check(self) -> None:
        """Prove what must hold between any two calls; raises InvariantError. Mutates nothing. O(blocks + requests)."""
        holders = {id(request): request for request in [*self._requests.values(), *self._in_flight.values()]}
        for group, pool in enumerate(self.pools):
            pool.check(
                Counter(
                    block_id
                    for request in holders.values()
                    if request.block_ids
                    for block_id in request.block_ids[group][request.given_back[group] :]
                )
            )
        if self._residency.slots is not None:
            held = [request.state_slot for request in holders.values() if request.state_slot is not None]
            self._residency.slots.check(held)
        if len(self._requests) != len(self._waiting) + len(self._running):
            raise InvariantError("an unfinished request is neither waiting nor running, or both")
        for request in self._waiting:
            if request.state is not RequestState.WAITING or request.block_ids or request.computed:
                raise InvariantError(f"request {request.request_id} waits and still holds blocks or computed tokens")
        for request in self._running:
            if request.state is not RequestState.RUNNING or not request.computed < len(request.known):
                raise InvariantError(f"request {request.request_id} runs and has nothing to compute")
            self._residency.check(request)

    def _key(self, request: Request) -> Key:
        """A gang stands where its first member does."""
        if request.gang is None:
            return self._policy.key(request)
        return (*self._policy.key(self._gangs.leader(request)), request.sequence)

    def _preempt_by_force(self) -> list[Request]:
        """The test mode. A victim has delivered something since its admission, so repeated force cannot stop it."""
        self._steps_since_forced += 1
        if self.config.preempt_every is None or self._steps_since_forced < self.config.preempt_every:
            return []
        for request in reversed(self._running):
            if request.progressed:
                self._steps_since_forced = 0
                return self._preempt(request)
        return []

    def _take(self, step: StepBuilder, request: Request, behind: int) -> None:
        """Plan what the request's blocks and the step's time allow: first what is loaded, then what is computed."""
        if self.swapping is None or self.swapping.advance(request, step):
            step.take(request, behind)

    def _make_way(self) -> list[Request]:
        """Preempt running requests for waiting ones that come before them and find no seat or no blocks.

        A victim has delivered what it owes: as many tokens as were to be computed when it was admitted. So making way
        costs no more than what was got for it, and taking turns comes to an end. Nobody makes way for a fork that would
        not be admitted yet, or that has its prompt from him, or for one of his gang.
        """
        victims: list[Request] = []
        seats, wanted, ahead = self.config.max_sequences - len(self._running), (0,) * len(self.pools), 0
        for newcomer in tuple(self._waiting):
            if self._waits_for_origin(newcomer):
                continue
            seats -= 1
            wanted = total([wanted, self._residency.missing_blocks(newcomer, self._origin(newcomer))])
            ahead += self._reservations.ahead(newcomer)
            while seats < 0 or not self.pools.can_allocate(wanted, self._spare(self._running, 0, ahead)):
                victim = self._running[-1] if self._running else None
                if victim is None or not victim.progressed or victim.owed > 0:
                    return victims
                if newcomer.fork_of == victim.request_id or self._gangs.are_together(newcomer, victim):
                    return victims
                if self._waiting.key_of(newcomer) > self._running.key_of(victim):
                    return victims
                freed = self._preempt(victim)
                victims += freed
                seats += len(freed)
        return victims

    def _gather(self) -> list[Request]:
        """Preempt the gangs that have members running and members waiting for seats, blocks or time, but for the one
        that is next to be admitted: each would keep from the others what they wait for. Returns who was preempted."""
        if not self._gangs:
            return []
        waiting = [one for one in self._waiting if not self._waits_for_origin(one)]
        scattered = {one.gang for one in waiting if not self._gangs.are_together(one, waiting[0])} - {None}
        victims: list[Request] = []
        for request in tuple(self._running):
            if request.gang in scattered and request.state is RequestState.RUNNING:
                victims += self._preempt(request)
        return victims

    def _grow(self, requests: Sequence[Request]) -> list[Request]:
        """Give running requests, one or a gang, blocks for all their known tokens; returns who was preempted for it.

        Victims come from the end of the running list: none of them is in the step that is being planned, and the
        first running request finds everything it needs, since every request fits into the pool alone, and so does
        every gang. They may be the last ones themselves: then they are the last victims.
        """
        victims: list[Request] = []
        while not self.pools.can_allocate(total(map(self._residency.missing_blocks, requests))):
            victims += self._preempt(self._running[-1])
            if requests[0] in victims:
                return victims
        for request in requests:
            self._residency.grow(request)
        spare = self.pools.spare(len(self._running), len(self._running))
        for request in requests:
            self._residency.grow_for_drafts(request, spare)
        return victims

    def _preempt(self, request: Request) -> list[Request]:
        """Back to waiting with its gang, to be recomputed; what they delivered stays delivered. Returns them."""
        victims = self._gangs.running(request)
        for victim in victims:
            self._running.remove(victim)
            self._residency.release(victim, returns=True)
            victim.state = RequestState.WAITING
            victim.computed = 0
            victim.preemptions += 1
            self._preemptions += 1
            self._waiting.insert(victim)
        return victims

    def _admit_next(self, now: float, step: StepBuilder) -> Request | None:
        """Admit the first waiting request if there is a seat and room for its known tokens; nobody overtakes it. Where
        no time is left, only one whose gang is waiting for it.

        Passed over are forks whose origin is still reading the prompt: in a step or two they need not compute it. Their
        seats are kept.
        """
        passed_over = 0
        for request in self._waiting:
            if not self._waits_for_origin(request):
                break
            passed_over += 1
        else:
            return None
        taken = len(self._running) + passed_over
        gang = self._gangs.running(request)
        if not (step.has_time or gang) or not self._has_room(request, taken, gang):
            return None
        if self.config.whole_prompts and not step.fits_whole(request):
            return None
        spare = self._spare_blocks(request, gang, passed_over)
        if not self._residency.settle(request, spare, origin=self._origin(request)):
            return None
        request.owed = len(request.known) - request.computed
        self._waiting.remove(request)
        request.state = RequestState.RUNNING
        request.progressed = False
        request.started_s = now if request.started_s is None else request.started_s
        self._running.insert(request)
        return request

    def _spare_blocks(self, request: Request, gang: Sequence[Request], passed_over: int) -> Counts:
        """Blocks that must be left when a waiting request is admitted, or it would soon be preempted for others: for
        each of those who run, and a block for each that is passed over, but not for its gang, who can do nothing
        without it; for its own answer too, unless nobody else runs and nothing is won by waiting."""
        others = [one for one in self._running if one not in gang] if gang else self._running
        anybody = passed_over or len(others)
        return self._spare(others, passed_over, self._reservations.ahead(request) if anybody else 0)

    def _spare(self, running: Sequence[Request] | OrderedRequests, passed_over: int, ahead: int) -> Counts:
        """Blocks to be left for those who run, one for each that is passed over, and `ahead` for answers to come."""
        ahead += self._reservations.of_running(running) + passed_over
        return self.pools.spare(len(running) + passed_over, ahead)

    def _has_room(self, request: Request, taken: int, running: Sequence[Request]) -> bool:
        """Whether there is a seat for a waiting request beside the `taken` ones; the first of a gang, of which none is
        `running`, is admitted only where seats and blocks are for all, since nothing comes of some."""
        members = self._gangs.members(request)
        if len(members) == 1 or running:
            return taken < self.config.max_sequences
        first, *others = map(self._residency.missing_blocks, members)
        if not request.generated_tokens:  # they fork the first
            shared = request.prompt_tokens // self.config.block_size
            others = [tuple([max(count - shared, 0) for count in missing]) for missing in others]
        wanted = total([first, *others])
        return taken + len(members) <= self.config.max_sequences and self.pools.can_allocate(wanted)

    def _forked(self, request: Request) -> Request | None:
        """The unfinished request that this one forks; none where sequences carry states, which lie behind the origin's
        last token only: then each computes its own prompt."""
        return None if request.fork_of is None or self.config.state_slots else self._requests.get(request.fork_of)

    def _waits_for_origin(self, request: Request) -> bool:
        """Whether this one's prompt is about to be read by the request it forks."""
        origin = self._forked(request)
        if origin is None or request.generated_tokens or not request.has_prompt_of(origin):
            return False
        if origin.state is RequestState.WAITING:
            return self._waiting.key_of(origin) < self._waiting.key_of(request)
        return request.may_fork(origin) and self._residency.may_fork_soon(request, origin)

    def _origin(self, request: Request) -> Request | None:
        """The running request whose prompt this one can copy."""
        origin = self._forked(request)
        return origin if origin is not None and request.may_fork(origin) else None

    def _launch(self, items: list[StepItem], preempted: list[Request]) -> StepPlan | None:
        if not items:
            if self._requests:
                raise InvariantError(f"{len(self._requests)} requests are unfinished and none can be computed")
            return None
        total = sum(item.n for item in items)
        victims = tuple(request.request_id for request in preempted)
        self._plan = StepPlan(self._steps, tuple(items), total, victims, self._residency.take_moves())
        self._in_flight = {item.request_id: self._requests[item.request_id] for item in items}
        self._steps += 1
        self._computed_tokens += total
        return self._plan

    def _branch(self, in_flight: Mapping[int, Request], result: StepResult) -> None:
        """Those who go on from another request's sequence take it over, before anybody gets new tokens."""
        branching = [
            (in_flight[tokens.request_id], in_flight[tokens.origin])
            for tokens in result.tokens.values()
            if tokens.origin is not None and tokens.origin != tokens.request_id
        ]
        alive = [pair for pair in branching if pair[0].state is RequestState.RUNNING]
        if alive:
            self._residency.branch(alive)

    def _check_result(self, plan: StepPlan, result: StepResult) -> None:
        if self._plan is None or plan is not self._plan:
            raise InvariantError(f"commit() of step {plan.step}, which is not in flight")
        most = {item.request_id: item.most_tokens for item in plan.items}
        branch = any(tokens.origin is not None for tokens in result.tokens.values())
        ends = {item.request_id: item.known_end for item in plan.items} if branch else {}
        for request_id, tokens in result.tokens.items():
            if len(tokens.token_ids) > most.get(request_id, 0):
                limit = f"{len(tokens.token_ids)} tokens, {most.get(request_id, 0)} at most"
                raise InvariantError(f"step {plan.step} returned for request {request_id}: {limit}")
            if tokens.origin is not None and not self._may_branch(self._in_flight[request_id], tokens.origin, ends):
                raise InvariantError(
                    f"step {plan.step}: request {request_id} cannot go on from request {tokens.origin}: both must be "
                    "of one prompt and have all their tokens computed in this step"
                )

    def _may_branch(self, request: Request, origin_id: int, ends: Mapping[int, int]) -> bool:
        origin = self._in_flight.get(origin_id)
        if origin is None or not request.has_prompt_of(origin) or origin.cache_salt != request.cache_salt:
            return False
        if origin.namespace != request.namespace:
            return False
        return all(ends[one.request_id] == len(one.known) for one in (request, origin))

    def _advance(self, request: Request, item: StepItem, result: StepResult, now: float) -> None:
        """Counters first, then the table, then the events: a finished request publishes before it releases."""
        tokens = result.tokens.get(item.request_id)
        end = item.known_end
        token_ids = () if tokens is None else tokens.token_ids
        reason: FinishReason | None = None
        accepted = 0
        for token_id in token_ids:
            accepted += 1
            reason = request.append(token_id)
            if reason is not None:
                break
        if accepted:
            request.draft_token_ids = ()
        scored = max(request.scored, min(end, request.prompt_tokens))
        delivered = accepted + scored - request.scored
        request.progressed = request.progressed or delivered > 0
        request.owed -= delivered
        request.scored = scored
        if request.max_new_tokens == 0 and end == len(request.known):
            reason = "length"
        if item.request_id in result.whole and accepted == len(token_ids):
            reason = "stop"
        # All new tokens but the last were computed as drafts. A running request keeps one token to compute, so that
        # one whose sampling gave nothing is simply asked again.
        request.computed = min(end + max(len(token_ids) - 1, 0), len(request.known) - (reason is None))
        self._residency.publish(request)
        if tokens is not None and accepted:
            whole = accepted == len(token_ids)
            self._events.append(tokens if whole else _first(tokens, accepted))
        fresh = min(item.n, max(end - request.reached, 0))
        request.reached = max(request.reached, end)
        self._policy.served(request, fresh, accepted, now)
        if reason is not None:
            self._finish(request, reason)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        (self._running if request.state is RequestState.RUNNING else self._waiting).remove(request)
        del self._requests[request.request_id]
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        self._finished[reason] += 1
        self._policy.ended(request)
        self._reservations.ended(request)
        if request.preemptions:
            self._residency.give_up(request)
        self._gangs.dissolve(request)
        if self._in_flight.get(request.request_id) is not request:
            self._residency.release(request)
        self._events.append(Ended(request.request_id, reason, request.cached_tokens or 0))


def _first(tokens: Tokens, count: int) -> Tokens:
    """What was accepted of a run of tokens that ended its request."""
    return Tokens(tokens.request_id, tokens.token_ids[:count], tokens.logprobs[:count])
