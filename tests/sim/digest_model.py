# SPDX-License-Identifier: Apache-2.0
"""A fake model in whose KV cache a wrong context cannot hide, and a pool that poisons what it hands out.

A slot stores a digest of the whole prefix up to its position, computed from the slot before it as it is *stored*, as
attention would. Reading position p demands the right digest in every slot 0 … p, of a group with a window in those that
p sees. The next token is a function of the last digest alone, so what a request must generate is known without any
scheduler: `expected_tokens`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from linnet.scheduler import (
    GIVEN_BACK,
    BlockMove,
    BlockPool,
    BlockPools,
    Request,
    Sample,
    SchedulerConfig,
    Score,
    StepItem,
    StepPlan,
    StepResult,
    Tokens,
    Verify,
)
from linnet.scheduler.tier import BlockTier

VOCABULARY = 11
POISON = b"handed out and not written"


def root_digest(salt: bytes) -> bytes:
    """The salt changes what the model computes, so a block shared across salts is a wrong context."""
    return blake2b(salt, digest_size=16, person=b"sim-root").digest()


def next_digest(parent: bytes, token_id: int) -> bytes:
    return blake2b(parent + token_id.to_bytes(8, "little"), digest_size=16).digest()


def sampled_token(digest: bytes) -> int:
    return digest[0] % VOCABULARY


def prefix_digests(salt: bytes, token_ids: list[int]) -> list[bytes]:
    """The right content of the slots of positions 0 … len(token_ids) - 1."""
    digests = [root_digest(salt)]
    for token_id in token_ids:
        digests.append(next_digest(digests[-1], token_id))
    return digests[1:]


def expected_tokens(request: Request) -> tuple[int, ...]:
    """What the request generates when it is alone in the world: the model's definition, no scheduler involved."""
    generated: list[int] = []
    digest = prefix_digests(request.cache_salt, list(request.prompt_token_ids))[-1]
    while len(generated) < request.max_new_tokens:
        generated.append(sampled_token(digest))
        if generated[-1] in request.stop_token_ids and len(generated) > request.min_new_tokens:
            break
        digest = next_digest(digest, generated[-1])
    return tuple(generated)


class PoisoningPool(BlockPool):
    """Overwrites the slots of every block it allocates: stale content that happens to be right is no excuse.

    Before that, what is to be stored in the tier is read: a step begins with its stores.
    """

    def __init__(self, num_blocks: int, block_size: int, swap_blocks: int = 0, most_pinned: int = 0) -> None:
        super().__init__(num_blocks, block_size, BlockTier(swap_blocks) if swap_blocks else None, most_pinned)
        self.slots: list[bytes] = [POISON] * (num_blocks * block_size)
        self.swapped: list[list[bytes]] = [[POISON] * block_size for _ in range(swap_blocks)]
        self._poisoned: list[int] = []

    def allocate(self, count: int) -> list[int]:
        taken = super().allocate(count)
        self._poisoned += taken
        return taken

    def content(self, block_id: int) -> list[bytes]:
        return self.slots[block_id * self.block_size : (block_id + 1) * self.block_size]

    def write(self, block_id: int, content: list[bytes]) -> None:
        self.slots[block_id * self.block_size : (block_id + 1) * self.block_size] = content

    def make(self, moves: Sequence[BlockMove]) -> None:
        """Carry out the moves of a plan in their order, and poison what was handed out."""
        for move in moves:
            if move.kind == "store":
                assert POISON not in self.content(move.source), f"block {move.source} is stored and was not written"
                self.swapped[move.target] = self.content(move.source)
        for block_id in self._poisoned:
            self.write(block_id, [POISON] * self.block_size)
        self._poisoned.clear()
        for move in moves:
            if move.kind == "load":
                assert POISON not in self.swapped[move.source], f"slot {move.source} is loaded and was not written"
                self.write(move.target, self.swapped[move.source])
            elif move.kind == "copy":
                self.write(move.target, self.content(move.source))


class PoisoningPools(BlockPools):
    """One for each group of a config."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.poisoning = [
            PoisoningPool(
                group.num_blocks, config.block_size, group.swap_blocks, int(group.num_blocks * config.share_kept)
            )
            for group in config.groups
        ]
        super().__init__(config.groups, self.poisoning)


def _verified(use: Sample | Verify, drawn: list[int]) -> tuple[int, ...]:
    """As many of the drawn tokens as the guesses before them were right for."""
    drafts = use.draft_token_ids if isinstance(use, Verify) else ()
    right = 0
    while right < len(drafts) and drafts[right] == drawn[right]:
        right += 1
    return tuple(drawn[: right + 1])


@dataclass
class DigestModel:
    """Executes plans; remembers, per request, its tokens and the prompt rows whose logits were asked for.

    `withholds` makes it return no token now and then, as an engine may whose sampler could not decide. `copy_s`: what
    storing or loading a block is said to take.
    """

    pools: PoisoningPools
    withholds: Random | None = None
    requests: dict[int, Request] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    scored_positions: dict[int, list[int]] = field(default_factory=dict)
    moves: Counter[str] = field(default_factory=Counter)
    copy_s: float = 0.0

    def register(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.tokens[request.request_id] = list(request.prompt_token_ids)
        self.scored_positions[request.request_id] = []

    def run(self, plan: StepPlan) -> StepResult:
        """All writes, then all reads: two items that write the same slot cannot both read it back."""
        self._check_shape(plan)
        made = Counter(move.kind for move in plan.moves)
        self.moves += made
        for group, pool in enumerate(self.pools.poisoning):
            pool.make([move for move in plan.moves if move.group == group])
            for item in plan.items:
                self._write(item, pool, item.blocks[group])
        sampled: dict[int, tuple[int, ...]] = {}
        for item in plan.items:
            request, tokens = self.requests[item.request_id], self.tokens[item.request_id]
            right = prefix_digests(request.cache_salt, [*tokens[: item.start], *item.token_ids])
            for group, pool in enumerate(self.pools.poisoning):
                window = self.pools.groups[group].window
                seen = range(0 if window is None else max(item.start - window + 1, 0), item.start + item.n)
                table = item.blocks[group]
                wrong = [at for at in seen if self._stored(pool, table, at) != right[at]]
                assert not wrong, f"request {item.request_id} reads a wrong context at positions {wrong} of {group}"
            stored = right
            for use in item.uses:
                if isinstance(use, Score):
                    rows = range(item.start + use.first, item.start + use.first + use.rows)
                    self.scored_positions[item.request_id] += rows
                    assert list(use.target_ids) == [tokens[row + 1] for row in rows]
                elif self.withholds is None or self.withholds.random() > 0.1:
                    drawn = [sampled_token(digest) for digest in stored[use.first + item.start :]]
                    sampled[item.request_id] = _verified(use, drawn)
            tokens += sampled.get(item.request_id, ())
        tokens_of = {request_id: Tokens(request_id, ids) for request_id, ids in sampled.items()}
        return StepResult(tokens_of, made["store"] * self.copy_s, made["load"] * self.copy_s)

    @staticmethod
    def _stored(pool: PoisoningPool, table: Sequence[int], position: int) -> bytes:
        block_id, offset = table[position // pool.block_size], position % pool.block_size
        assert block_id != GIVEN_BACK, f"position {position} is seen and its block was given back"
        return pool.slots[block_id * pool.block_size + offset]

    def _write(self, item: StepItem, pool: PoisoningPool, table: Sequence[int]) -> None:
        """The item's rows, from what is stored of the one before them."""
        salt = self.requests[item.request_id].cache_salt
        digest = self._stored(pool, table, item.start - 1) if item.start else root_digest(salt)
        for position, token_id in enumerate(item.token_ids, start=item.start):
            digest = next_digest(digest, token_id)
            pool.slots[table[position // pool.block_size] * pool.block_size + position % pool.block_size] = digest

    def _check_moves(self, moves: Sequence[BlockMove]) -> None:
        """Each kind can be made at once, and the kinds one after the other."""
        order = ("store", "load", "copy")
        assert [move.kind for move in moves] == sorted((move.kind for move in moves), key=order.index)
        for group, pool in enumerate(self.pools.poisoning):
            self._check_moves_of([move for move in moves if move.group == group], pool)

    @staticmethod
    def _check_moves_of(moves: Sequence[BlockMove], pool: PoisoningPool) -> None:
        order = ("store", "load", "copy")
        written: list[int] = []
        for kind in order:
            ends = [(move.source, move.target) for move in moves if move.kind == kind]
            targets = {target for _, target in ends}
            assert len(targets) == len(ends)
            if kind == "copy":
                assert not targets & {source for source, _ in ends}
                assert all(map(pool.may_write, targets))
            elif kind == "load":
                assert all(pool.reference_count(target) > 0 for target in targets)
            if kind != "store":
                written += targets
        assert len(set(written)) == len(written), "a block is the target of two moves"

    def _check_shape(self, plan: StepPlan) -> None:
        """What a runner may rely on without looking at the scheduler."""
        assert plan.items
        assert plan.total_tokens == sum(item.n for item in plan.items)
        assert len({item.request_id for item in plan.items}) == len(plan.items)
        written: set[tuple[int, int, int]] = set()
        self._check_moves(plan.moves)
        for item in plan.items:
            request, tokens = self.requests[item.request_id], self.tokens[item.request_id]
            known_end, end = item.known_end, item.start + item.n
            assert item.n >= 1
            assert item.token_ids[: known_end - item.start] == tuple(tokens[item.start : known_end])
            assert len(item.token_ids) == item.n
            assert [len(blocks) for blocks in item.blocks] == [self.pools.blocks_for(end)] * len(self.pools)
            assert list(item.output_offsets) == sorted(set(item.output_offsets))
            assert all(0 <= offset < item.n for offset in item.output_offsets)
            scores = [use for use in item.uses if isinstance(use, Score)]
            draws = [use for use in item.uses if not isinstance(use, Score)]
            assert len(scores) <= request.score_prompt
            assert len(draws) == (known_end == len(tokens) and request.max_new_tokens > 0)
            for use in draws:
                assert item.start + use.first == known_end - 1
                assert use.first + use.rows == item.n
                if isinstance(use, Verify):
                    assert item.token_ids[use.first + 1 :] == use.draft_token_ids
            assert len(tokens) - request.prompt_tokens + item.most_tokens <= request.max_new_tokens
            for group, (pool, blocks) in enumerate(zip(self.pools, item.blocks, strict=True)):
                first = self.pools.groups[group].first_block(item.start, pool.block_size)
                assert list(blocks[:first]) == [GIVEN_BACK] * first, "a block behind the window is still held"
                for block_id in blocks[first:]:
                    assert pool.reference_count(block_id) > 0, f"block {block_id} is in flight and held by nobody"
                for position in range(item.start, end):
                    slot = (group, blocks[position // pool.block_size], position % pool.block_size)
                    assert slot not in written, f"slot {slot} is written twice in one step"
                    assert pool.may_write(slot[1]), f"block {slot[1]} is written while shared or published"
                    written.add(slot)
