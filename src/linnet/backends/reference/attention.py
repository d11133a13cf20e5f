# SPDX-License-Identifier: Apache-2.0
"""Attention and the two ways its keys and values are kept: paged blocks, or plain values for autograd.

Both round what they store to the state's dtype, and attention reads only what was stored.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from linnet.backends.reference.ops import TORCH_TYPES, softcap
from linnet.errors import UnsupportedError
from linnet.program.attributes import Attention
from linnet.program.program import PagedState, Program


class Memory(Protocol):
    """Where kv_write stores and attention reads."""

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None: ...

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions 0 .. context of a sequence whose rows are start .. stop, fp32."""


def state_dtype(state: PagedState) -> torch.dtype:
    """The torch type a state stores."""
    if not isinstance(state.dtype, str) or state.dtype not in ("fp32", "bf16", "fp16"):
        raise UnsupportedError(f"the reference backend stores KV as fp32, bf16 or fp16; {state.name} is {state.dtype}")
    return TORCH_TYPES[state.dtype]


class PagedMemory:
    """The engine's KV: per state one array of slots; slot = block id * block_size + offset."""

    def __init__(self, program: Program, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.keys: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}
        slots = num_blocks * block_size
        for state in program.states:
            dtype = state_dtype(state)
            self.keys[state.name] = torch.zeros(slots, state.kv_heads * state.head_size, dtype=dtype)
            self.values[state.name] = torch.zeros(slots, state.kv_heads * state.value_head_size, dtype=dtype)

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Store rows at their slots."""
        self.keys[state][slots.long()] = key.detach().to(self.keys[state].dtype)
        self.values[state][slots.long()] = value.detach().to(self.values[state].dtype)

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather the sequence's slots in position order."""
        positions = torch.arange(context)
        slots = block_tables[sequence].long()[positions // self.block_size] * self.block_size
        slots = slots + positions % self.block_size
        return self.keys[state][slots].float(), self.values[state][slots].float()


@dataclass
class FunctionalMemory:
    """KV as values: every sequence is whole (positions from 0), so its keys are this run's rows. Autograd flows."""

    dtypes: dict[str, torch.dtype]
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(program: Program) -> "FunctionalMemory":
        """An empty memory for one run of ``program``."""
        return FunctionalMemory({state.name: state_dtype(state) for state in program.states})

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor | None) -> None:
        """Keep the rows, rounded as a paged state would."""
        dtype = self.dtypes[state]
        self.rows[state] = (key.to(dtype).float(), value.to(dtype).float())

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequence's own rows."""
        if context != stop - start:
            raise UnsupportedError(f"functional KV needs whole sequences; sequence {sequence} has earlier positions")
        key, value = self.rows[state]
        return key[start:stop], value[start:stop]


def attention(
    query: torch.Tensor,
    query_start: torch.Tensor,
    context_lengths: torch.Tensor,
    block_tables: torch.Tensor | None,
    memory: Memory,
    state: str,
    attributes: Attention,
) -> torch.Tensor:
    """fp32 [tokens, heads * value_head_size]; sequences of equal length and context are computed together."""
    starts, contexts = query_start.tolist(), context_lengths.tolist()
    outputs: list[torch.Tensor] = []
    sequence, count = 0, len(contexts)
    while sequence < count:
        rows, context = starts[sequence + 1] - starts[sequence], contexts[sequence]
        last = sequence
        pairs = []
        while last < count and starts[last + 1] - starts[last] == rows and contexts[last] == context:
            pairs.append(memory.read(state, last, starts[last], starts[last + 1], context, block_tables))
            last += 1
        keys, values = (torch.stack(part) for part in zip(*pairs, strict=True))
        queries = query[starts[sequence] : starts[last]].reshape(last - sequence, rows, -1)
        outputs.append(attend(queries, keys, values, context, attributes).flatten(0, 1))
        sequence = last
    return torch.cat(outputs)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: int, attributes: Attention
) -> torch.Tensor:
    """[batch, rows, heads * size] over keys [batch, context, kv_heads * size]; the rows are the last positions."""
    batch, rows = query.shape[:2]
    heads, kv_heads = attributes.heads, attributes.kv_heads
    query = query.float().reshape(batch, rows, heads, -1).transpose(1, 2)
    key = key.reshape(batch, context, kv_heads, -1).transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1)
    value = value.reshape(batch, context, kv_heads, -1).transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1)
    scores = (query @ key.transpose(2, 3)) * attributes.scale
    if attributes.softcap is not None:
        scores = softcap(scores, attributes.softcap)
    key_positions = torch.arange(context)
    if attributes.alibi_slopes is not None:
        scores = scores + torch.tensor(attributes.alibi_slopes)[:, None, None] * key_positions
    row_positions = torch.arange(context - rows, context)[:, None]
    hidden = key_positions > row_positions
    if attributes.window is not None:
        hidden = hidden | (key_positions <= row_positions - attributes.window)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return (weights @ value).transpose(1, 2).reshape(batch, rows, -1)
