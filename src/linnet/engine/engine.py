# SPDX-License-Identifier: Apache-2.0
"""The engine: one model, its KV cache, its scheduler, and the step that ties them together.

Order of side effects of ``step``: schedule, launch, collect, (abort what failed), commit, translate events. One thread
at a time; see ``thread.EngineThread`` for the one that owns an engine in a server.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace

from linnet.backends.interface import Executable, Limits
from linnet.engine.adapters import AdapterFacts, EngineAdapters
from linnet.engine.beams import BeamGroup
from linnet.engine.block_store import BlockStore, StorePlace
from linnet.engine.facts import EngineFacts
from linnet.engine.held import HeldRequests
from linnet.engine.live import LiveRequest, PooledRows, PromptScoreRows
from linnet.engine.matcher import Grammars
from linnet.engine.matching import Matching
from linnet.engine.messages import (
    Abort,
    Control,
    EngineEvent,
    EngineMessage,
    EngineUnavailableError,
    ErrorInfo,
    Finished,
    Keep,
    LoadAdapter,
    Pooling,
    Submit,
    UnloadAdapter,
    error_info,
)
from linnet.engine.moving import MEASURED_BLOCKS, make_moves, measure_copies
from linnet.engine.participant import Participant, common_config
from linnet.engine.runner import Runner
from linnet.errors import CapacityError, ConfigError
from linnet.program.hidden import makes_logits, vocabulary_of
from linnet.program.program import Program
from linnet.scheduler import Ended, Event, Kept, Request, Scheduler, SchedulerConfig, SchedulerCounters, Tokens


def _width(program: Program, name: str) -> int:
    return next(int(value.shape[-1]) for value in program.values if value.name == name)


def limits_of(config: SchedulerConfig) -> Limits:
    """What a backend must prepare for, so that every plan of such a scheduler can be executed."""
    return Limits(
        max_tokens=config.token_budget,
        max_sequences=config.max_sequences,
        max_outputs=config.output_rows,
        block_size=config.block_size,
        max_blocks_per_sequence=-(-config.max_model_len // config.block_size),
    )


class Engine:
    """Takes messages, makes one step at a time and answers with events; scheduler, runner and states are its own."""

    def __init__(
        self,
        executable: Executable,
        config: SchedulerConfig,
        *,
        states: object | None = None,
        others: Sequence[Participant] = (),
        clock: Callable[[], float] = time.monotonic,
        check: bool = False,
        hidden: str | None = None,
        pooling: Pooling = "last",
        swap_place: StorePlace | None = None,
        grammars: Grammars | None = None,
        adapters: AdapterFacts | None = None,
    ) -> None:
        """``executable`` was prepared with ``limits_of(config)`` or wider limits. ``states`` are allocated if None.

        ``others`` take part in the steps of requests that ask to be compared with them. ``swap_place`` is where the
        config's ``swap_blocks`` lie, in memory if it is None; ConfigError and CapacityError where they cannot.
        ``hidden``: the value that the executable keeps for embeddings, if it does (``program.hidden_value``);
        ``pooling``: what the model makes them of, unless asked for another.
        ``grammars`` makes matchers of requests' grammars; None: a request with one is refused. ``adapters``: bounds of
        those that may be loaded, where the executable's program has places for them.
        ``check`` proves scheduler invariants and batch bounds in every step (tests; a few per cent of a step).
        """
        self.executable = executable
        vocabulary = vocabulary_of(executable.program)
        width = 0 if hidden is None else _width(executable.program, hidden)
        self.facts = EngineFacts(
            vocabulary_size=vocabulary,
            scheduling=config,
            compares=bool(others),
            embedding_size=width,
            pooling=pooling,
            generates=makes_logits(executable.program),
            adapters=adapters,
        )
        self.adapters = EngineAdapters(executable, adapters, lambda digest: self.scheduler.let_go_of(digest))
        self._held = HeldRequests(self.adapters)
        if any(vocabulary_of(other.executable.program) != vocabulary for other in others):
            raise ConfigError("two models in lockstep must have the same vocabulary")
        num_blocks = [group.num_blocks for group in config.groups]
        self.states = executable.allocate_states(*num_blocks) if states is None else states
        self._stores = self._open_stores(swap_place)
        self.scheduler = Scheduler(config)
        self.draining = False
        first = Participant(executable, self.states)
        if self._stores:
            first = replace(first, slots=[store.memory for store in self._stores])
            self._restore(first)
        participants = (first, *others)
        self._runner = Runner(participants, limits_of(config), num_blocks, vocabulary, check, hidden)
        self.clock = clock
        self._grammars = grammars
        self._check = check
        self._stepping = False
        self._live: dict[int, LiveRequest] = {}
        self._errors: dict[int, ErrorInfo] = {}
        self._failure: BaseException | None = None

    def _open_stores(self, place: StorePlace | None) -> list[BlockStore]:
        """One for each cache group, if there are any."""
        groups, sizes = self.facts.scheduling.groups, self.executable.stored_bytes_per_block
        if not groups[0].swap_blocks:
            return []
        sizes = sizes if len(groups) > 1 else (sum(sizes),)
        return [
            BlockStore(replace(place or StorePlace(), group=index), group.swap_blocks, size)
            for index, (group, size) in enumerate(zip(groups, sizes, strict=True))
        ]

    def _restore(self, participant: Participant) -> None:
        """Tell the scheduler what kept stores hold, and what copies take."""
        pools, swapping = self.scheduler.pools, self.scheduler.swapping
        assert swapping is not None
        unused = []
        for (group, tier), store in zip(pools.tiers, self._stores, strict=True):
            tier.restore(store.index)
            unused.append(tier.free_slots(min(MEASURED_BLOCKS, pools.pools[group].num_blocks)))
        swapping.expect(*measure_copies(participant, unused))

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work or bool(self._live) or bool(self._held)

    @property
    def stepping(self) -> bool:
        """Whether a step is being computed, in whatever thread; the model's memory is in use then."""
        return self._stepping

    @property
    def unfinished(self) -> tuple[int, ...]:
        """Ids of requests whose Finished has not been returned yet."""
        return (*self._live, *self._held)

    def counters(self) -> SchedulerCounters:
        """A snapshot for the metrics page."""
        return self.scheduler.counters()

    def handle(self, message: EngineMessage, arrival_s: float | None = None) -> None:
        """Any message. Raises as ``submit`` does."""
        if isinstance(message, Submit):
            self.submit(message, arrival_s)
        elif isinstance(message, Abort):
            self.abort(message.request_id)
        elif isinstance(message, Keep):
            namespace = self.adapters.digest(message.adapter)
            if namespace is not None:
                self.scheduler.keep(
                    Kept(
                        message.owner,
                        message.token_ids,
                        message.cache_salt,
                        message.shared_tokens,
                        message.lasting,
                        namespace,
                    )
                )
        elif isinstance(message, LoadAdapter):
            self.adapters.load(message)
        elif isinstance(message, UnloadAdapter):
            self.adapters.unload(message.adapter)
        elif isinstance(message, Control):
            self._control(message)
        else:
            raise TypeError(f"not an engine message: {type(message).__name__}")

    def submit(self, submit: Submit, arrival_s: float | None = None) -> None:
        """Queue a request; its events come out of ``step``. Nothing has changed when this raises.

        ``arrival_s``: when it came, on the engine's clock, where it had to wait for the engine; None: now.

        Raises ConfigError (a request that can never run here), CapacityError (queue full), EngineUnavailableError.
        """
        if self._failure is not None:
            raise EngineUnavailableError("the engine has failed or was closed and takes no requests")
        if self.draining:
            raise EngineUnavailableError("the engine is draining and takes no new requests")
        if submit.request_id in self._live or submit.request_id in self._held:
            raise ConfigError(f"request {submit.request_id}: an unfinished request has this id already")
        self.facts.validate(submit)
        arrival_s = self.clock() if arrival_s is None else arrival_s
        if not self.adapters.is_coming(submit.adapter):
            self._admit(submit, arrival_s)
        elif len(self.unfinished) < self.facts.max_requests:
            self._held.add(submit, arrival_s)
        else:
            raise CapacityError(
                f"{len(self.unfinished)} requests are unfinished, the most that are taken (max_sequences, "
                "max_waiting_requests)",
                settings=["max_sequences", "max_waiting_requests"],
            )

    def _admit(self, submit: Submit, arrival_s: float, waited: bool = False) -> None:
        """Hand a request to the scheduler. ``waited``: for its adapter. Raises as ``submit`` does."""
        origin = None if submit.fork_of is None else self._live.get(submit.fork_of)
        beams = self._beams(submit, origin)
        prompt = submit.prompt_token_ids
        if origin is not None and origin.request.prompt_token_ids == prompt:
            prompt = origin.request.prompt_token_ids  # the same object, so that nobody compares them again
        scores = submit.params.prompt_logprobs is not None or submit.compare
        if submit.grammar is not None and self._grammars is None:
            raise ConfigError("this engine has no compiler of grammars")
        adapter, namespace = self.adapters.hold(submit.adapter, waited)
        request = Request(
            request_id=submit.request_id,
            prompt_token_ids=prompt,
            max_new_tokens=submit.max_tokens,
            stop_token_ids=frozenset() if submit.params.use_beam_search else submit.stop_token_ids,
            min_new_tokens=min(submit.params.min_tokens, submit.max_tokens),
            arrival_s=arrival_s,
            priority=submit.priority,
            tenant=submit.tenant,
            cache_salt=submit.cache_salt,
            shared_tokens=submit.shared_tokens,
            score_prompt=scores or submit.embed is not None,
            hidden=submit.embed is not None,
            deadline_s=None if submit.timeout_s is None else arrival_s + submit.timeout_s,
            fork_of=submit.fork_of,
            gang=submit.gang,
            participants=(0, 1) if submit.compare else (0,),
            adapter=adapter,
            namespace=namespace,
        )
        if scores:
            # Rows before score_start - 1 need no logits: they count as delivered from the start.
            request.scored = min(submit.score_start, len(submit.prompt_token_ids)) - 1
        elif submit.embed == "last":
            request.scored = len(prompt) - 1
        try:
            self.scheduler.add(request)
        except BaseException:
            self.adapters.let_go(submit.adapter)
            raise
        matching = self._matching(submit)
        if beams is not None:
            beams.join(request, matching)
        self._live[submit.request_id] = LiveRequest(
            submit,
            request,
            matching,
            PromptScoreRows() if scores else None,
            beams,
            None if submit.embed is None else PooledRows(first=submit.embed == "cls"),
        )

    def _matching(self, submit: Submit) -> Matching | None:
        """Asked for when the request has been taken, so that nobody compiles for one that is refused."""
        if submit.grammar is None or self._grammars is None:
            return None
        try:
            coming = self._grammars.matcher(submit.grammar)
        except Exception as error:  # the request is in: its end is the first mask that it asks for
            coming = Future()
            coming.set_exception(error)
        if self.facts.scheduling.state_slots:  # what a row did to a state stays: none is computed in vain
            wait([coming])
        return Matching(coming, submit.stop_token_ids)

    def _beams(self, submit: Submit, origin: LiveRequest | None) -> BeamGroup | None:
        """The search that a request is part of: that of the request it forks, else a new one."""
        if not submit.params.use_beam_search:
            return None
        if submit.fork_of is None:
            return BeamGroup(submit)
        if origin is None or origin.beams is None:
            raise ConfigError(f"request {submit.request_id}: the search that it is to be a beam of has ended")
        if origin.beams.complete or not origin.beams.may_join(submit):
            raise ConfigError(
                f"request {submit.request_id} is no beam of the search of request {submit.fork_of}: that has as many "
                "as it is to have, or another prompt or other ends"
            )
        return origin.beams

    def abort(self, request_id: int) -> bool:
        """End a request; False when it is unknown. Its Finished comes out of the next ``step``."""
        return self._held.abort(request_id) or self.scheduler.abort(request_id)

    def in_lockstep(self, other: "Engine") -> "Engine":
        """A new engine over this one's model and KV memory, with ``other``'s model in lockstep.

        Both must be idle and stay so; their prefix caches are emptied. Raises ConfigError.
        """
        for one in (self, other):
            if one.has_work:
                raise ConfigError("an engine with unfinished requests cannot be run in lockstep")
            one.forget_prefixes()
        config = common_config(self.facts.scheduling, other.facts.scheduling)
        second = Participant(other.executable, other.states)
        return Engine(self.executable, config, states=self.states, others=[second], check=self._check)

    def forget_prefixes(self) -> int:
        """Empty the prefix cache and what lies behind it; returns how many blocks were forgotten.

        Blocks in use keep their names.
        """
        return self.scheduler.pools.forget()

    def close(self) -> None:
        """Forget the model and its states, so that their memory is free; every later call is refused. Idempotent.

        Unfinished requests end without a word. Where swapped blocks are kept, all that can be found again is kept.
        """
        if self._stores and self._stores[0].kept and self._failure is None:
            self._keep_blocks()
        self._failure = self._failure or EngineUnavailableError("the engine is closed")
        self._runner.close()
        self.adapters.close()
        for store in self._stores:
            store.close()
        self._stores = []
        self.executable = self.states = self.adapters.executable = None  # type: ignore[assignment]

    def _keep_blocks(self) -> None:
        """Leave what is cached, here and in the tiers, to the next engine; what is wanted most has a place first."""
        for request_id in self.unfinished:
            self.scheduler.abort(request_id)
        pools = self.scheduler.pools
        for group, tier in pools.tiers:
            tier.room = None
            pools.pools[group].evict()
        slots = [store.memory for store in self._stores]
        make_moves([Participant(self.executable, self.states, slots)], pools.take_moves())
        for (_, tier), store in zip(pools.tiers, self._stores, strict=True):
            store.save(tier.index())

    def step(self) -> tuple[EngineEvent, ...]:
        """Compute one step; returns its events. A step without work returns what aborts and deadlines left.

        An exception of the backend leaves the engine failed: it takes no requests and steps no more.
        """
        if self._failure is not None:
            raise EngineUnavailableError("the engine has failed or was closed") from self._failure
        self._stepping = True
        try:
            return self._step()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._stepping = False

    def _step(self) -> tuple[EngineEvent, ...]:
        now = self.clock()
        told = self._release(now)
        plan = self.scheduler.schedule(now)
        if plan is None:
            self._held.wait()
            return told + self._translate(self.scheduler.take_events())
        self._runner.launch(plan, self._live)
        output = self._runner.collect()
        for request_id, error in output.failed.items():
            self._errors[request_id] = error
            self.scheduler.abort(request_id, "error")
        events = self.scheduler.commit(plan, output.result, self.clock())
        if output.answered:
            events += self._end_searches(output.answered)
        for request_id, guess in output.guesses.items():
            self._live[request_id].request.draft_token_ids = guess
        if self._check:
            self.scheduler.check()
        return told + self._translate(events)

    def _release(self, now: float) -> tuple[EngineEvent, ...]:
        """Take over adapters that are ready and admit who waited for them; what became of those that cannot be."""
        self.adapters.settle()
        failed: list[EngineEvent] = []
        for submit, arrival_s in self._held.released(now):
            try:
                self._admit(submit, arrival_s, waited=True)
            except Exception as error:
                failed.append(Finished(submit.request_id, "error", error=error_info(error)))
        return (*self._held.take_events(), *failed)

    def _end_searches(self, request_ids: Sequence[int]) -> tuple[Event, ...]:
        """End the beams of searches that have their answers, after the step that gave them has been taken in."""
        for request_id in request_ids:
            group = self._live[request_id].beams
            assert group is not None
            self.scheduler.abort(request_id, group.answer(request_id).reason)
        return self.scheduler.take_events()

    def _translate(self, events: tuple[Event, ...]) -> tuple[EngineEvent, ...]:
        """Tokens go up as they are, but for those of beams, which may still be taken back; an end is told with what the
        scheduler does not know."""
        told: list[EngineEvent] = []
        for event in events:
            if isinstance(event, Ended):
                one = self._live.pop(event.request_id)
                self.adapters.let_go(one.submit.adapter)
                if one.beams is not None:
                    told += self._searched(one.beams, event)
                told.append(self._finished(one, event))
            elif self._live[event.request_id].beams is None:
                told.append(event)
        return tuple(told)

    def _searched(self, group: BeamGroup, ended: Ended) -> list[EngineEvent]:
        """The answer of a beam. A search that loses one before its end is over: the others end for the same reason."""
        if group.ended:
            answer = group.answer(ended.request_id)
            return [Tokens(ended.request_id, answer.token_ids, answer.logprobs)]
        for other in group.request_ids:
            if self.scheduler.abort(other, ended.reason) and ended.request_id in self._errors:
                self._errors[other] = self._errors[ended.request_id]
        return []

    def _finished(self, one: LiveRequest, ended: Ended) -> Finished:
        error = self._errors.pop(ended.request_id, None)
        # In which step of the prompt's an error comes depends on others: what was scored before is not told with it.
        complete = error is None and one.request.scored >= one.request.prompt_tokens
        return Finished(
            ended.request_id,
            ended.reason,
            ended.cached_tokens,
            one.scores.result() if complete and one.scores is not None else None,
            error,
            one.request.queued_s,
            one.pooled.result() if complete and one.pooled is not None else None,
        )

    def _control(self, control: Control) -> None:
        if control.action == "drain":
            self.draining = True
        elif control.action == "abort_all":
            for request_id in self.unfinished:
                self.abort(request_id)
        else:
            self.forget_prefixes()
