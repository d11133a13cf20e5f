# SPDX-License-Identifier: Apache-2.0
"""The law of DESIGN section 6: a row's bits depend on its sequence alone. Any row alone = in any batch = any chunking =
any number of threads = any placement of blocks, on every instruction-set tier, in both numerics policies.

LINNET_FUZZ_TRIALS sets the number of random workloads per tier (default 4); LINNET_FUZZ_SEED the first seed.
"""

import os
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu.backend import ISAS, CpuBackend, CpuExecutable
from linnet.backends.interface import Batch, Limits
from linnet.errors import UnsupportedError
from linnet.program.choose_numerics import KV_CACHES
from linnet.schemes.terms import Terms

TRIALS = int(os.environ.get("LINNET_FUZZ_TRIALS", "4"))
FIRST_SEED = int(os.environ.get("LINNET_FUZZ_SEED", "0"))
FAMILIES = ("llama", "window", "qwen3", "gemma2", "neox", "bloom", "latent")
TERMS = (None, None, Terms(rank=3), Terms(whole=False, rank=9), Terms(rank=2, outliers=(0, 7, 30)))
STORAGES = (
    "fp32",
    "bf16",
    "fp16",
    "W4A16-g32",
    "W4A16-g32-asym",
    "W8A16",
    "W8A8",
    "W3A16",
    "W2A16",
    "NF4-g32",
    "FP8",
    "TERNARY",
)


@dataclass
class Workload:
    """Token rows of some sequences; a run returns every row's logits per sequence."""

    tokens: list[np.ndarray]
    limits: Limits

    def blocks_of(self, length: int) -> int:
        return -(-length // self.limits.block_size)

    def run(self, model: CpuExecutable, order: list[list[tuple[int, int]]], seed: int) -> list[np.ndarray]:
        """``order``: steps of (sequence, rows). Blocks are placed at random; every row is an output row."""
        random = np.random.default_rng(seed)
        needed = [self.blocks_of(len(tokens)) for tokens in self.tokens]
        total = sum(needed) + int(random.integers(0, 5))
        placed = np.split(random.permutation(total).astype(np.int32)[: sum(needed)], np.cumsum(needed)[:-1])
        states, computed = model.allocate_states(total), [0] * len(self.tokens)
        # Unused memory must not matter, whatever it holds.
        states.memory[:] = 0xFF
        rows: list[list[np.ndarray]] = [[] for _ in self.tokens]
        width = max(needed)
        for step in order:
            ids, positions, slots, starts, lengths, tables = [], [], [], [0], [], []
            for sequence, count in step:
                start = computed[sequence]
                at = np.arange(start, start + count)
                ids.append(self.tokens[sequence][at])
                positions.append(at)
                block = placed[sequence][at // self.limits.block_size]
                slots.append(block * self.limits.block_size + at % self.limits.block_size)
                starts.append(starts[-1] + count)
                computed[sequence] += count
                lengths.append(computed[sequence])
                tables.append(np.pad(placed[sequence], (0, width - needed[sequence])))
            batch = Batch(
                *(np.concatenate(part).astype(np.int32) for part in (ids, positions, slots)),
                np.array(starts, np.int32),
                np.array(lengths, np.int32),
                np.stack(tables).astype(np.int32),
                np.arange(starts[-1], dtype=np.int32),
            )
            model.execute(batch, states)
            logits = model.logits()
            for index, (sequence, _) in enumerate(step):
                rows[sequence].append(logits[starts[index] : starts[index + 1]])
        return [np.concatenate(part) for part in rows]


def random_order(random: np.random.Generator, lengths: list[int], max_tokens: int) -> list[list[tuple[int, int]]]:
    """Chunks of random sizes, several sequences per step, until every sequence is done."""
    left = list(lengths)
    order = []
    while any(left):
        step, room = [], max_tokens
        for sequence in random.permutation(len(left)):
            if not left[sequence] or not room or random.random() < 0.2:
                continue
            largest = min(left[sequence], room)
            count = 1 if random.random() < 0.3 else int(random.integers(1, largest + 1))
            step.append((int(sequence), count))
            left[sequence] -= count
            room -= count
        if step:
            order.append(step)
    return order


def backends(isa: str) -> dict[int, CpuBackend]:
    try:
        return {threads: CpuBackend(threads=threads, isa=isa) for threads in (1, 2, 3)}
    except UnsupportedError as error:
        pytest.skip(str(error))


def compare(alone: list[np.ndarray], together: list[np.ndarray], what: str) -> None:
    for sequence, (one, many) in enumerate(zip(alone, together, strict=True)):
        assert np.isfinite(one).all(), f"{what}: sequence {sequence} has NaN or infinity"
        different = np.flatnonzero((one.view(np.int32) != many.view(np.int32)).any(axis=1))
        assert different.size == 0, f"{what}: sequence {sequence} differs first at position {different[0]}"


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_the_same_in_any_company(random_model, isa):
    pools = backends(isa)
    for trial in range(TRIALS):
        seed = FIRST_SEED + trial
        random = np.random.default_rng([seed, ISAS.index(isa)])
        family, storage = random.choice(FAMILIES), random.choice(STORAGES)
        policy, kv_cache = random.choice(["exact", "fast"]), str(random.choice(KV_CACHES))
        count = int(random.integers(1, 33)) if random.random() < 0.2 else int(random.integers(1, 7))
        longest = 700 if count < 3 else 70
        lengths = [int(random.integers(1, longest)) for _ in range(count)]
        block_size = int(random.choice([1, 4, 8, 16, 32, 48]))
        blocks = -(-max(lengths) // block_size)
        work = Workload(
            [random.integers(0, 101, length) for length in lengths], Limits(1024, 32, 1024, block_size, blocks)
        )
        terms, rotated = random.choice(TERMS), random.random() < 0.3
        what = (
            f"seed {seed}, {isa}, {family}, {storage}, {terms}, rotated {rotated}, {policy}, KV {kv_cache}, "
            f"block {block_size}, lengths {lengths}"
        )
        source = random_model(str(family), str(storage), seed, None, terms, rotated)
        models = {
            threads: pool.prepare(source, policy, work.limits, kv_cache=kv_cache) for threads, pool in pools.items()
        }
        whole = [[(sequence, length)] for sequence, length in enumerate(lengths)]
        alone = work.run(models[1], whole, seed)
        compare(alone, work.run(models[2], whole, seed + 1), f"{what}, 2 threads")
        for threads in (1, 2, 3):
            order = random_order(random, lengths, 1024)
            compare(alone, work.run(models[threads], order, seed + threads), f"{what}, {threads} threads, {order[:3]}")


@pytest.mark.parametrize("isa", ISAS)
def test_decode_over_a_long_context_is_the_same_split_over_threads(random_model, isa):
    """One sequence of many partitions, row by row at the end: the case that splits the context over threads."""
    pools = backends(isa)
    random = np.random.default_rng(7)
    work = Workload([random.integers(0, 101, 1300)], Limits(1300, 1, 1300, 16, 82))
    source = random_model("llama", "bf16", 3)
    reference = work.run(pools[1].prepare(source, "fast", work.limits), [[(0, 1300)]], 1)
    for threads in (1, 2, 3):
        order = [[(0, 1)], [(0, 5)], [(0, 1284)], *([[(0, 1)]] * 10)]
        compare(reference, work.run(pools[threads].prepare(source, "fast", work.limits), order, threads), f"{threads}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", KV_CACHES[1:])
def test_bits_do_not_depend_on_the_block_size(random_model, isa, kv_cache):
    """Nor on how long ago keys were written: whole against row by row, at each block size."""
    backend = backends(isa)[2]
    tokens = [np.random.default_rng(3).integers(0, 101, 290)]
    found = []
    for block_size in (16, 1, 2, 8, 48):
        work = Workload(tokens, Limits(290, 1, 290, block_size, -(-290 // block_size)))
        model = backend.prepare(random_model("window", "bf16", 5), "fast", work.limits, kv_cache=kv_cache)
        found.append(work.run(model, [[(0, 200)], *([[(0, 1)]] * 90)], block_size))
        compare(found[0], found[-1], f"{isa}, KV {kv_cache}, block {block_size}")


@pytest.mark.parametrize("isa", ISAS)
def test_equal_ids_mean_equal_programs(random_model, isa):
    pool = backends(isa)[2]
    limits = Limits(8, 2, 8, 16, 2)
    ids = {
        (storage, policy): pool.prepare(random_model("llama", storage, 0), policy, limits).numerics.id
        for storage in ("fp32", "bf16", "W4A16-g32")
        for policy in ("exact", "fast")
    }
    assert len(set(ids.values())) == len(ids)
    again = pool.prepare(random_model("llama", "bf16", 1), "fast", Limits(16, 1, 1, 8, 4))
    assert again.numerics.id == ids["bf16", "fast"]
    assert isa in again.numerics.id.split("/")
