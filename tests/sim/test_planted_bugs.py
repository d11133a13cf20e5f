# SPDX-License-Identifier: Apache-2.0
"""The simulation must notice: each case plants one classic scheduler bug and demands that some run fails."""

from collections.abc import Callable, Sequence
from random import Random

import pytest
from digest_model import DigestModel, PoisoningPool
from scheduler_world import random_config, random_workload, simulate

from linnet.scheduler import (
    BlockMove,
    BlockPool,
    BlockPools,
    CacheGroup,
    Request,
    RequestState,
    Scheduler,
    extend_digests,
    residency,
)
from linnet.scheduler.prefix_cache import Forgotten
from linnet.scheduler.residency import Loadable, Residency
from linnet.scheduler.step import StepBuilder
from linnet.scheduler.tier import BlockTier

Patch = pytest.MonkeyPatch


def publish_before_computed(patch: Patch) -> None:
    original = Residency.publish

    def publish(self: Residency, request: Request) -> None:
        request.computed += 1
        original(self, request)
        request.computed -= 1

    patch.setattr(Residency, "publish", publish)


def hit_the_whole_prompt(patch: Patch) -> None:
    def lookup(self: Residency, request: Request) -> Sequence[Sequence[int]]:
        if not self.prefix_cache or request.score_prompt:
            return [()] * len(self.pools)
        return self.pools.lookup(self._digests(request, len(request.known) // self.pools.block_size))

    patch.setattr(Residency, "_lookup", lookup)


def ignore_the_salt(patch: Patch) -> None:
    def extend(digests: list[bytes], token_ids: Sequence[int], salt: bytes, size: int, blocks: int, *_: object) -> None:
        extend_digests(digests, token_ids, b"", size, blocks)

    patch.setattr(residency, "extend_digests", extend)


def hash_blocks_without_their_prefix(patch: Patch) -> None:
    def extend(digests: list[bytes], token_ids: Sequence[int], salt: bytes, size: int, blocks: int, *_: object) -> None:
        for index in range(len(digests), blocks):
            digests.append(salt + bytes(token_ids[index * size : (index + 1) * size]))

    patch.setattr(residency, "extend_digests", extend)


def count_one_token_too_many_as_computed(patch: Patch) -> None:
    original = Residency.settle

    def settle(self: Residency, request: Request, spare_blocks: int, origin: Request | None = None) -> bool:
        held = original(self, request, spare_blocks, origin)
        request.computed += held and 0 < request.computed < len(request.known) - 1
        return held

    patch.setattr(Residency, "settle", settle)


def release_while_in_flight(patch: Patch) -> None:
    original = Scheduler.abort

    def abort(self: Scheduler, request_id: int, reason: str = "abort") -> bool:
        request = self._requests.get(request_id)
        done = original(self, request_id, reason)  # type: ignore[arg-type]
        if request is not None:
            self._residency.release(request)
        return done

    patch.setattr(Scheduler, "abort", abort)


def never_release_what_was_aborted_in_flight(patch: Patch) -> None:
    original = Residency.release

    def release(self: Residency, request: Request, returns: bool = False) -> None:
        if request.finish_reason != "abort":
            original(self, request, returns)

    patch.setattr(Residency, "release", release)


def keep_the_name_of_an_evicted_block(patch: Patch) -> None:
    def evict(self: BlockPool, count: int | None = None) -> int:
        for _ in range(count or 0):
            block_id, _ = (self.cache._idle or self.cache._awaited).popitem(last=False)
            self.allocator.free(block_id)
        return count or 0

    patch.setattr(BlockPool, "evict", evict)


def share_without_counting(patch: Patch) -> None:
    patch.setattr(BlockPool, "share", lambda self, block_ids: None)


def score_again_after_a_preemption(patch: Patch) -> None:
    original = Scheduler._preempt

    def preempt(self: Scheduler, request: Request) -> list[Request]:
        victims = original(self, request)
        for victim in victims:
            victim.scored = 0 if victim.score_prompt else victim.scored
        return victims

    patch.setattr(Scheduler, "_preempt", preempt)


def preempt_without_recompute(patch: Patch) -> None:
    original = Residency.settle

    def settle(self: Residency, request: Request, spare_blocks: int, origin: Request | None = None) -> bool:
        held = original(self, request, spare_blocks, origin)
        if held and request.preemptions:
            request.computed = len(request.known) - 1
        return held

    patch.setattr(Residency, "settle", settle)


def preempt_who_has_not_progressed(patch: Patch) -> None:
    original = Scheduler._admit_next

    def admit_next(self: Scheduler, now: float, step: StepBuilder) -> Request | None:
        request = original(self, now, step)
        if request is not None:
            request.progressed = True
        return request

    patch.setattr(Scheduler, "_admit_next", admit_next)


def take_the_result_of_an_aborted_request(patch: Patch) -> None:
    original = Scheduler.commit

    def commit(self: Scheduler, plan, result, now):  # type: ignore[no-untyped-def]
        for request in self._in_flight.values():
            if request.finish_reason == "abort":
                request.state = RequestState.RUNNING
        return original(self, plan, result, now)

    patch.setattr(Scheduler, "commit", commit)


def stop_before_the_least_length(patch: Patch) -> None:
    original = Request.append

    def append(self: Request, token_id: int) -> object:
        return original(self, token_id) or ("stop" if token_id in self.stop_token_ids else None)

    patch.setattr(Request, "append", append)


def forget_to_copy_the_block_that_is_still_written(patch: Patch) -> None:
    patch.setattr(Residency, "take_moves", lambda self: ())


def fork_more_than_was_computed(patch: Patch) -> None:
    def forkable(self: Residency, request: Request, origin: Request) -> int:
        return min(self._reusable_tokens(request), request.prompt_tokens)

    patch.setattr(Residency, "_forkable_tokens", forkable)
    patch.setattr(Residency, "may_fork_soon", lambda self, request, origin: False)


def fork_across_salts(patch: Patch) -> None:
    def may_fork(self: Request, origin: Request) -> bool:
        return origin.state is RequestState.RUNNING and origin.prompt_token_ids == self.prompt_token_ids

    patch.setattr(Request, "may_fork", may_fork)


def use_a_slot_again_that_is_still_to_be_loaded(patch: Patch) -> None:
    def claim(self: BlockTier, awaited: bool) -> int | None:
        if self._next < self.num_slots:
            self._next += 1
            return self._next - 1
        for kind in (self._spare, self._idle, self._awaited):
            for digest in kind:
                del kind[digest]
                self._stores.pop(digest, None)
                return self._slot_of.pop(digest)
        return None

    patch.setattr(BlockTier, "_claim", claim)
    patch.setattr(BlockTier, "check", lambda self, names: None)


def load_before_storing(patch: Patch) -> None:
    original = BlockTier.take_moves
    patch.setattr(BlockTier, "take_moves", lambda self: original(self)[::-1])
    patch.setattr(DigestModel, "_check_moves", lambda self, moves: None)

    def make(self: PoisoningPool, moves: Sequence[BlockMove]) -> None:
        for move in moves:
            if move.kind == "store":
                self.swapped[move.target] = self.content(move.source)
            elif move.kind == "load":
                self.write(move.target, self.swapped[move.source])
            else:
                self.write(move.target, self.content(move.source))

    patch.setattr(PoisoningPool, "make", make)


def name_a_slot_and_forget_to_store(patch: Patch) -> None:
    original = BlockTier.put

    def put(self: BlockTier, forgotten: Sequence[Forgotten]) -> None:
        original(self, forgotten)
        self._stores.pop(forgotten[-1].digest, None)

    patch.setattr(BlockTier, "put", put)


def forget_to_load(patch: Patch) -> None:
    original = BlockTier.take_moves
    patch.setattr(BlockTier, "take_moves", lambda self: tuple(move for move in original(self) if move.kind != "load"))


def load_a_block_that_is_not_full(patch: Patch) -> None:
    original = Residency.loadable

    def loadable(self: Residency, request: Request) -> Sequence[Loadable]:
        computed, request.computed = request.computed, -(-request.computed // self.pools.block_size)
        request.computed *= self.pools.block_size
        found = original(self, request)
        if not found:
            request.computed = computed
        return found

    patch.setattr(Residency, "loadable", loadable)


def load_what_must_be_computed(patch: Patch) -> None:
    original = Residency.loadable

    def loadable(self: Residency, request: Request) -> Sequence[Loadable]:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(Residency, "_reusable_tokens", lambda self, request: len(request.known))
            return original(self, request)

    patch.setattr(Residency, "loadable", loadable)


def write_into_a_block_that_others_share(patch: Patch) -> None:
    original = Residency.load

    def load(self: Residency, request: Request, found: Sequence[Loadable]) -> None:
        original(self, request, found)
        request.computed -= self.pools.block_size // 2

    patch.setattr(Residency, "load", load)


def give_a_block_back_too_early(patch: Patch) -> None:
    def first_block(self: CacheGroup, position: int, block_size: int) -> int:
        return 0 if self.window is None else max(position - self.window + 2, 0) // block_size

    patch.setattr(CacheGroup, "first_block", first_block)


def give_nothing_back(patch: Patch) -> None:
    patch.setattr(Residency, "_give_back_behind", lambda self, request, group, position: None)


def take_blocks_for_a_whole_prompt(patch: Patch) -> None:
    patch.setattr(CacheGroup, "tokens_ahead", lambda self, known, computed, chunk_tokens: known)


def hit_a_prefix_whose_last_window_is_gone(patch: Patch) -> None:
    patch.setattr(BlockPools, "window_end", lambda self, digests, has, least=0: len(digests))


def fork_what_was_given_back(patch: Patch) -> None:
    def forkable(self: Residency, request: Request, origin: Request) -> int:
        return min(self._reusable_tokens(request), request.prompt_tokens, origin.computed)

    patch.setattr(Residency, "_forkable_tokens", forkable)


def move_blocks_of_another_group(patch: Patch) -> None:
    def take_moves(self: BlockPools) -> Sequence[BlockMove]:
        return tuple(move for kind in ("store", "load") for _, tier in self.tiers for move in tier.take_moves())

    patch.setattr(BlockPools, "take_moves", take_moves)


def forget_what_is_to_be_loaded(patch: Patch) -> None:
    patch.setattr(BlockTier, "keep_for_loading", lambda self, digests: None)


BUGS: list[Callable[[Patch], None]] = [
    publish_before_computed,
    hit_the_whole_prompt,
    ignore_the_salt,
    hash_blocks_without_their_prefix,
    count_one_token_too_many_as_computed,
    release_while_in_flight,
    never_release_what_was_aborted_in_flight,
    keep_the_name_of_an_evicted_block,
    share_without_counting,
    score_again_after_a_preemption,
    preempt_without_recompute,
    preempt_who_has_not_progressed,
    take_the_result_of_an_aborted_request,
    stop_before_the_least_length,
    forget_to_copy_the_block_that_is_still_written,
    fork_more_than_was_computed,
    fork_across_salts,
    use_a_slot_again_that_is_still_to_be_loaded,
    load_before_storing,
    name_a_slot_and_forget_to_store,
    forget_to_load,
    load_a_block_that_is_not_full,
    load_what_must_be_computed,
    write_into_a_block_that_others_share,
    give_a_block_back_too_early,
    give_nothing_back,
    take_blocks_for_a_whole_prompt,
    hit_a_prefix_whose_last_window_is_gone,
    fork_what_was_given_back,
    move_blocks_of_another_group,
    forget_what_is_to_be_loaded,
]


def run_many() -> None:
    for seed in range(60):
        random = Random(seed)
        workload = random_workload(random, random.randint(1, 16), aborts=True)
        fixed = {} if seed % 2 else {"prefix_cache": True, "block_size": random.choice((1, 2)), "max_sequences": 4}
        simulate(workload, random_config(random, workload, **fixed))
    for seed in range(20):  # one sequence's room, a tier behind it
        random = Random(1000 + seed)
        workload = random_workload(random, 10)
        fixed = {"prefix_cache": True, "swap_blocks": random.choice((4, 30, 1000)), "block_size": 2, "max_sequences": 4}
        simulate(workload, random_config(random, workload, one_sequence_only=True, preempt_every=2, **fixed))


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_simulation_notices(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, LookupError)):
        run_many()


def test_without_a_bug_it_is_silent() -> None:
    run_many()
