# SPDX-License-Identifier: Apache-2.0
"""Turns a StepPlan's integers into a Batch, in arrays that are allocated once."""

import numpy as np

from linnet.backends.interface import Batch, Limits
from linnet.scheduler import StepPlan


class BatchBuffers:
    """Persistent arrays sized by Limits; ``fill`` returns a Batch of views of them, valid until the next call."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._token_ids = np.zeros(limits.max_tokens, np.int32)
        self._positions = np.zeros(limits.max_tokens, np.int32)
        self._kv_slots = np.zeros(limits.max_tokens, np.int32)
        self._query_start = np.zeros(limits.max_sequences + 1, np.int32)
        self._context_lengths = np.zeros(limits.max_sequences, np.int32)
        self._block_tables = np.zeros(limits.max_sequences * limits.max_blocks_per_sequence, np.int32)
        self._output_rows = np.zeros(limits.max_outputs, np.int32)
        self._state_slots = np.zeros(limits.max_sequences, np.int32)
        self._steps = np.arange(limits.max_tokens, dtype=np.int32)

    def fill(self, plan: StepPlan) -> Batch:
        """The plan as a Batch. Sequence s is item s; output rows are in item order, then row order."""
        size = self.limits.block_size
        sequences = len(plan.items)
        width = max(len(item.blocks[0]) for item in plan.items)
        tables = self._block_tables[: sequences * width].reshape(sequences, width)
        tables.fill(plan.items[0].blocks[0][0])
        row = 0
        starts, lengths = [0], []
        output_rows: list[int] = []
        for index, item in enumerate(plan.items):
            blocks, start, n = item.blocks[0], item.start, item.n
            table = tables[index]
            table[: len(blocks)] = blocks
            if n == 1:  # decoding: the common case, without arrays
                self._positions[row] = start
                self._token_ids[row] = item.token_ids[0]
                self._kv_slots[row] = blocks[start // size] * size + start % size
            else:
                positions = self._positions[row : row + n]
                np.add(self._steps[:n], start, out=positions)
                self._token_ids[row : row + n] = item.token_ids
                self._kv_slots[row : row + n] = table[positions // size] * size + positions % size
            for use in item.uses:
                output_rows += range(row + use.first, row + use.first + use.rows)
            row += n
            starts.append(row)
            lengths.append(start + n)
        slots = [item.state_slot for item in plan.items if item.state_slot is not None]
        self._state_slots[: len(slots)] = slots
        outputs = len(output_rows)
        self._query_start[: sequences + 1] = starts
        self._context_lengths[:sequences] = lengths
        self._output_rows[:outputs] = output_rows
        return Batch(
            token_ids=self._token_ids[:row],
            positions=self._positions[:row],
            kv_slots=self._kv_slots[:row],
            query_start=self._query_start[: sequences + 1],
            context_lengths=self._context_lengths[:sequences],
            block_tables=tables,
            output_rows=self._output_rows[:outputs],
            state_slots=self._state_slots[: len(slots)],
        )
