# SPDX-License-Identifier: Apache-2.0
"""An Executable without a model: every KV slot holds a digest of the whole prefix, logits are a function of it.

A wrong block, slot, position or order changes the digest and with it every later token and log-probability, so engine
tests see a wrong context at once; and they run in microseconds. Sampling and scoring are the specification's.
"""

from collections.abc import Sequence

import numpy as np

from linnet.backends.interface import Batch, SampleResult, SamplingBatch, Scores
from linnet.backends.reference import sampling as specification
from linnet.program.program import Program, Value

MASK = (1 << 64) - 1


def mix(state: int, token_id: int, position: int) -> int:
    """One step of the digest (splitmix64's finaliser over state, token and position)."""
    value = (state ^ (token_id * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 1)) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


class DigestExecutable:
    """See the module. ``break_after`` steps, execute raises; ``nan_token`` in a context makes its logits NaN."""

    numerics_id = "digest"
    arena_bytes = 0

    @property
    def kv_bytes_per_block(self) -> tuple[int, ...]:
        return (8,) * len(self.windows)

    @property
    def stored_bytes_per_block(self) -> tuple[int, ...]:
        return (self.block_size * 16,) * len(self.windows)

    choices: dict[str, str] = {}  # noqa: RUF012

    def __init__(
        self,
        vocabulary: int,
        block_size: int,
        salt: int = 0,
        nan_token: int | None = None,
        windows: Sequence[int | None] = (None,),
    ) -> None:
        logits = Value("logits", ("outputs", vocabulary), "fp32")
        self.program = Program((), (logits,), (), (), (), (), ("logits",))
        self.vocabulary, self.block_size, self.salt, self.nan_token = vocabulary, block_size, salt, nan_token
        self.windows = tuple(windows)
        self.steps = 0
        self.break_after: int | None = None
        self._logits = np.zeros((0, vocabulary), np.float32)

    def allocate_states(self, *num_blocks: int) -> list[np.ndarray]:
        return [np.zeros((blocks * self.block_size, 2), np.uint64) for blocks in num_blocks]

    def copy_blocks(self, states: list[np.ndarray], sources: np.ndarray, targets: np.ndarray, group: int = 0) -> None:
        blocks = states[group].reshape(-1, self.block_size, 2)
        blocks[targets] = blocks[sources]

    def store_blocks(
        self, states: list[np.ndarray], blocks: np.ndarray, store: np.ndarray, slots: np.ndarray, group: int = 0
    ) -> None:
        store[slots] = states[group].view(np.uint8).reshape(-1, self.block_size * 16)[blocks]

    def load_blocks(
        self, states: list[np.ndarray], store: np.ndarray, slots: np.ndarray, blocks: np.ndarray, group: int = 0
    ) -> None:
        states[group].view(np.uint8).reshape(-1, self.block_size * 16)[blocks] = store[slots]

    def execute(self, batch: Batch, states: list[np.ndarray]) -> None:
        """A row's state comes of what is stored of the row before it, and is stored in every group. The
        furthest row that a window shows is in the logits too."""
        self.steps += 1
        if self.break_after is not None and self.steps > self.break_after:
            raise RuntimeError("the kernel broke")
        rows = [(0, False)] * len(batch.token_ids)
        for sequence in range(len(batch.context_lengths)):
            for row in range(batch.query_start[sequence], batch.query_start[sequence + 1]):
                position, token_id = int(batch.positions[row]), int(batch.token_ids[row])
                parents = [self._before(batch, states, group, sequence, position) for group in range(len(states))]
                before, poisoned = parents[0]
                for other, _ in parents[1:]:
                    if other != before:
                        before = mix(before, 1, other & 0xFFFF)  # a wrong context, which must be seen
                state = mix(before, token_id, position)
                poisoned = bool(poisoned) or token_id == self.nan_token
                for group, memory in enumerate(states):
                    memory[batch.kv_slots[group, row]] = (state, int(poisoned))
                rows[row] = (state ^ self._furthest(batch, states, sequence, position), poisoned)
        self._logits = np.stack([self._row(*rows[row]) for row in batch.output_rows] or [np.zeros(self.vocabulary)])

    def _before(
        self, batch: Batch, states: list[np.ndarray], group: int, sequence: int, position: int
    ) -> tuple[int, bool]:
        if not position:
            return self.salt, False
        state, poisoned = self._stored(batch, states, group, sequence, position - 1)
        return state, bool(poisoned)

    def _furthest(self, batch: Batch, states: list[np.ndarray], sequence: int, position: int) -> int:
        """Something of the furthest row that each group with a window still sees."""
        seen = 0
        for group, window in enumerate(self.windows[: len(states)]):
            if window is not None:
                seen ^= self._stored(batch, states, group, sequence, max(position - window + 1, 0))[0]
        return seen

    def _stored(
        self, batch: Batch, states: list[np.ndarray], group: int, sequence: int, position: int
    ) -> tuple[int, int]:
        block = int(batch.block_tables[group, sequence, position // self.block_size])
        state, poisoned = states[group][block * self.block_size + position % self.block_size].tolist()
        return state, poisoned

    def _row(self, state: int, poisoned: bool) -> np.ndarray:
        if poisoned:
            return np.full(self.vocabulary, np.nan, np.float32)
        return np.random.Generator(np.random.Philox(key=state)).normal(0, 3, self.vocabulary).astype(np.float32)

    def logits(self) -> np.ndarray:
        return self._logits.copy()

    def tap(self, name: str) -> np.ndarray:
        raise NotImplementedError(name)

    def sample(self, sampling: SamplingBatch) -> SampleResult:
        return specification.sample(self._logits, sampling)

    def score(self, rows: np.ndarray, targets: np.ndarray, other: "DigestExecutable | None" = None) -> Scores:
        return specification.score(self._logits, rows, targets, None if other is None else other.logits())
