# SPDX-License-Identifier: Apache-2.0
"""Turns a StepPlan's integers into a Batch, in arrays that are allocated once."""

import numpy as np

from linnet.backends.interface import Batch, Limits
from linnet.scheduler import GIVEN_BACK, Hidden, StepPlan


class BatchBuffers:
    """Persistent arrays sized by Limits; ``fill`` returns a Batch of views of them, valid until the next call."""

    def __init__(self, limits: Limits, groups: int = 1) -> None:
        self.limits = limits
        self._token_ids = np.zeros(limits.max_tokens, np.int32)
        self._positions = np.zeros(limits.max_tokens, np.int32)
        self._kv_slots = np.zeros(groups * limits.max_tokens, np.int32)
        self._query_start = np.zeros(limits.max_sequences + 1, np.int32)
        self._context_lengths = np.zeros(limits.max_sequences, np.int32)
        self._block_tables = np.zeros(groups * limits.max_sequences * limits.max_blocks_per_sequence, np.int32)
        self._output_rows = np.zeros(limits.max_outputs, np.int32)
        self._state_slots = np.zeros(limits.max_sequences, np.int32)
        self._adapters = np.zeros(limits.max_tokens, np.int32)
        self._steps = np.arange(limits.max_tokens, dtype=np.int32)

    def fill(self, plan: StepPlan) -> Batch:
        """The plan as a Batch. Sequence s is item s; output rows are those that want logits, then those that want
        hidden states, each in item order, then row order."""
        size = self.limits.block_size
        sequences, groups = len(plan.items), len(plan.items[0].blocks)
        width = max(len(item.blocks[0]) for item in plan.items)
        tables = self._block_tables[: groups * sequences * width].reshape(groups, sequences, width)
        slots_of = self._kv_slots[: groups * plan.total_tokens].reshape(groups, plan.total_tokens)
        for group, table in enumerate(tables):
            table.fill(plan.items[0].blocks[group][-1])
        row = 0
        starts, lengths = [0], []
        output_rows: list[int] = []
        hidden_rows: list[int] = []
        for index, item in enumerate(plan.items):
            start, n = item.start, item.n
            positions = self._positions[row : row + n]
            if n == 1:  # decoding: the common case, without arrays
                self._positions[row] = start
                self._token_ids[row] = item.token_ids[0]
            else:
                np.add(self._steps[:n], start, out=positions)
                self._token_ids[row : row + n] = item.token_ids
            for group, blocks in enumerate(item.blocks):
                table = tables[group, index]
                table[: len(blocks)] = blocks
                if blocks[0] == GIVEN_BACK:  # nothing of it is looked at, but it must be a block
                    table[table == GIVEN_BACK] = blocks[-1]
                if n == 1:
                    slots_of[group, row] = blocks[start // size] * size + start % size
                else:
                    slots_of[group, row : row + n] = table[positions // size] * size + positions % size
            for use in item.uses:
                wanted = hidden_rows if isinstance(use, Hidden) else output_rows
                wanted += range(row + use.first, row + use.first + use.rows)
            row += n
            starts.append(row)
            lengths.append(start + n)
        slots = [item.state_slot for item in plan.items if item.state_slot is not None]
        self._state_slots[: len(slots)] = slots
        logit_rows, outputs = len(output_rows), len(output_rows) + len(hidden_rows)
        self._query_start[: sequences + 1] = starts
        self._context_lengths[:sequences] = lengths
        self._output_rows[:outputs] = output_rows + hidden_rows
        return Batch(
            token_ids=self._token_ids[:row],
            positions=self._positions[:row],
            kv_slots=slots_of,
            query_start=self._query_start[: sequences + 1],
            context_lengths=self._context_lengths[:sequences],
            block_tables=tables,
            output_rows=self._output_rows[:outputs],
            state_slots=self._state_slots[: len(slots)],
            logit_rows=logit_rows,
            adapters=self._adapters_of(plan),
        )

    def _adapters_of(self, plan: StepPlan) -> np.ndarray:
        """Of each row; none where no item has one."""
        if all(item.adapter is None for item in plan.items):
            return self._adapters[:0]
        row = 0
        for item in plan.items:
            self._adapters[row : row + item.n] = -1 if item.adapter is None else item.adapter
            row += item.n
        return self._adapters[:row]
