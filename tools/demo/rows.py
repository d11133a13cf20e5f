# SPDX-License-Identifier: Apache-2.0
"""Packs episodes into rows of tokens, whole episodes only, so that nothing is ever asked without its document."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy
from small_world.mix import stream
from small_world.prose import Prose
from small_world.world import World
from tokenizers import Tokenizer

POOL_EPISODES = 384


class Rows:
    """Training batches in chunks; a chunk depends on the seed and its index alone, so a resumed run sees the same."""

    def __init__(
        self,
        world: World,
        prose: Prose,
        tokenizer: Tokenizer,
        row_tokens: int,
        seed: int,
        shares: dict[str, float],
    ) -> None:
        """Keep what is needed to make any batch; a row holds `row_tokens` inputs and as many targets."""
        self.world, self.prose, self.tokenizer = world, prose, tokenizer
        self.row_tokens, self.seed, self.shares = row_tokens, seed, shares
        self.separator = tokenizer.token_to_id("<|endoftext|>")

    def chunk(self, index: int, batches: int, rows: int) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Yield `batches` pairs (ids int64, weights float32), each [rows, row_tokens + 1], of chunk `index`."""
        packed = self._pack(f"{self.seed}-{index}")
        for _ in range(batches):
            ids, weights = zip(*(next(packed) for _ in range(rows)), strict=True)
            yield numpy.stack(ids), numpy.stack(weights)

    def _encoded(self, seed: str) -> Iterator[tuple[list[int], list[float]]]:
        episodes = stream(self.world, self.prose, seed, self.shares)
        while True:
            batch = [next(episodes) for _ in range(POOL_EPISODES)]
            texts = [text for episode in batch for text, _ in episode.segments]
            encodings = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            for episode in batch:
                ids: list[int] = []
                weights: list[float] = []
                for _, weight in episode.segments:
                    part = next(encodings).ids
                    ids += part
                    weights += [weight] * len(part)
                if len(ids) <= self.row_tokens + 1:
                    yield ids, weights

    def _pack(self, seed: str) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        source = random.Random(f"pack-{seed}")
        encoded = self._encoded(seed)
        pool = [next(encoded) for _ in range(POOL_EPISODES)]
        length = self.row_tokens + 1
        while True:
            ids: list[int] = []
            weights: list[float] = []
            source.shuffle(pool)
            # One long episode, if there is one, opens the row; whatever fits follows it.
            pool.sort(key=lambda entry: len(entry[0]) < length // 2)
            kept = []
            for entry in pool:
                if len(ids) + len(entry[0]) <= length:
                    ids += entry[0]
                    weights += entry[1]
                else:
                    kept.append(entry)
            missing = length - len(ids)
            yield (
                numpy.array(ids + [self.separator] * missing, dtype=numpy.int64),
                numpy.array(weights + [0.0] * missing, dtype=numpy.float32),
            )
            pool = kept + [next(encoded) for _ in range(POOL_EPISODES - len(kept))]
