# SPDX-License-Identifier: Apache-2.0
"""Drives an Executable over prompts in any chunking, with scattered blocks, and collects every position's logits."""

import random
from collections.abc import Sequence

import numpy as np

from linnet.backends.interface import Batch, Executable

BLOCK_SIZE = 4
BLOCKS_PER_SEQUENCE = 16


def batch_of(
    prompts: Sequence[Sequence[int]],
    tables: Sequence[Sequence[int]],
    items: Sequence[tuple[int, int, int]],
    adapters: Sequence[int] = (),
) -> Batch:
    """A step computing tokens [start, start + n) of each (prompt index, start, n); every row is an output row.
    ``adapters``: of each prompt."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for index, start, count in items:
        for position in range(start, start + count):
            token_ids.append(prompts[index][position])
            positions.append(position)
            slots.append(tables[index][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        starts.append(len(token_ids))

    def integers(values: object) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=np.int32)

    return Batch(
        token_ids=integers(token_ids),
        positions=integers(positions),
        kv_slots=integers(slots),
        query_start=integers(starts),
        context_lengths=integers([start + count for _, start, count in items]),
        block_tables=integers([tables[index] for index, _, _ in items]),
        output_rows=integers(range(len(token_ids))),
        state_slots=integers([index for index, _, _ in items]),
        adapters=integers([adapters[index] for index, _, count in items for _ in range(count)] if adapters else []),
    )


def run(
    executable: Executable,
    prompts: Sequence[Sequence[int]],
    chunks: Sequence[int] | None,
    seed: int = 0,
    adapters: Sequence[int] = (),
) -> list[np.ndarray]:
    """Logits [length, vocabulary] per prompt. ``chunks``: tokens per step and sequence, the last one for all the
    rest; None computes whole prompts in one step."""
    shuffled = list(range(len(prompts) * BLOCKS_PER_SEQUENCE))
    random.Random(seed).shuffle(shuffled)
    tables = [shuffled[i * BLOCKS_PER_SEQUENCE : (i + 1) * BLOCKS_PER_SEQUENCE] for i in range(len(prompts))]
    states = executable.allocate_states(len(shuffled))
    found: list[list[np.ndarray]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    step = 0
    while any(count < len(prompt) for count, prompt in zip(done, prompts, strict=True)):
        last = chunks is None or step >= len(chunks)
        items = []
        for index, prompt in enumerate(prompts):
            left = len(prompt) - done[index]
            count = left if last else min(left, chunks[step])
            if count:
                items.append((index, done[index], count))
        executable.execute(batch_of(prompts, tables, items, adapters), states)
        logits = executable.logits()
        row = 0
        for index, _, count in items:
            found[index].append(logits[row : row + count])
            row += count
            done[index] += count
        step += 1
    return [np.concatenate(parts) for parts in found]
