# SPDX-License-Identifier: Apache-2.0
"""Attention and the two ways its keys and values are kept: paged blocks, or plain values for autograd.

Both round what they store to the state's dtype, and attention reads only what was stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from linnet.backends.block_memory import Parts
from linnet.backends.reference.ops import TORCH_TYPES, softcap
from linnet.errors import UnsupportedError
from linnet.program.attributes import Attention
from linnet.program.program import PagedState, Program

PARTITION_KEYS = 256
"""Attention's bf16 weights are rounded relative to the greatest of their partition: see program.attributes."""

TILE_ROWS = 128
"""Queries whose scores exist at a time, each over no more keys than the last of them sees."""


class Memory(Protocol):
    """Where kv_write stores and attention reads."""

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None: ...

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor | None
    ) -> "tuple[StoredRows, StoredRows]":
        """Keys and values of positions 0 .. context of a sequence whose rows are start .. stop."""

    def carried(self, state: str, slot: int) -> "torch.Tensor | None":
        """What the sequence in a slot carries, fp32; None where it begins anew."""

    def carry(self, state: str, slot: int, carried: torch.Tensor) -> None:
        """Keep it for the sequence's next rows."""


STORED_CODES = {"int8": (torch.int8, 127.5), "int4": (torch.int8, 7.5), "fp8_e4m3": (torch.float8_e4m3fn, 448.0)}
"""Element of a quantised state -> the torch type that holds its codes, and the code that a head's greatest gets."""


@dataclass(frozen=True)
class StoredRows:
    """Keys or values as kept: rounded elements, or codes with one fp32 scale per row and head."""

    codes: torch.Tensor  # [rows, kv_heads * size]
    scales: torch.Tensor | None = None  # [rows, kv_heads]

    def at(self, rows: torch.Tensor | slice) -> "StoredRows":
        """Some of the rows."""
        return StoredRows(self.codes[rows], None if self.scales is None else self.scales[rows])


def refuse_state(state: PagedState) -> str | None:
    """None, or why a state cannot be kept."""
    if isinstance(state.dtype, str):
        return (
            None
            if state.dtype in ("fp32", "bf16", "fp16")
            else f"the reference backend stores KV as fp32, bf16, fp16 or codes, not {state.dtype}"
        )
    scheme = state.dtype
    good = scheme.element in STORED_CODES and scheme.granularity == "head" and scheme.symmetric and scheme.dynamic
    return None if good else f"KV is quantised to dynamic symmetric {', '.join(STORED_CODES)} per head, not {scheme}"


def store(x: torch.Tensor, state: PagedState) -> StoredRows:
    """What ``state`` keeps of keys or values fp32 [rows, kv_heads * size].

    Quantised: scale = max |x| of the token's head / range (127.5, 7.5, 448), codes are x / scale rounded to nearest
    even and clamped, as compressed-tensors defines it; a head of zeros has scale 0 and codes 0.
    """
    if isinstance(state.dtype, str):
        return StoredRows(x.to(TORCH_TYPES[state.dtype]))
    code_type, span = STORED_CODES[state.dtype.element]
    heads = x.float().reshape(x.shape[0], state.kv_heads, -1)
    scales = heads.abs().amax(dim=-1) / torch.tensor(span)
    scaled = heads / torch.where(scales == 0, torch.ones_like(scales), scales)[..., None]
    if code_type is torch.int8:
        scaled = torch.round(scaled).clamp(-span - 0.5, span - 0.5)
    else:
        scaled = scaled.clamp(-span, span)
    return StoredRows(scaled.to(code_type).reshape(x.shape), scales)


class PagedMemory:
    """The engine's KV: per state one array of slots; slot = block id * block_size + offset.

    ``num_blocks``: of each cache group, or of all together."""

    def __init__(self, program: Program, num_blocks: Sequence[int], block_size: int, sequences: int = 0) -> None:
        self.num_blocks, self.block_size = tuple(num_blocks), block_size
        self._states = {state.name: state for state in program.states}
        self._group_of = {state.name: state.group if len(num_blocks) > 1 else 0 for state in program.states}
        self.keys: dict[str, StoredRows] = {}
        self.values: dict[str, StoredRows] = {}
        for state in program.states:
            slots = num_blocks[self._group_of[state.name]] * block_size
            self.keys[state.name] = store(torch.zeros(slots, state.kv_heads * state.head_size), state)
            self.values[state.name] = store(torch.zeros(slots, state.kv_heads * state.value_head_size), state)
        self._carried = {state.name: torch.zeros(sequences, *state.shape) for state in program.slot_states}

    def carried(self, state: str, slot: int) -> torch.Tensor:
        """See Memory.carried."""
        return self._carried[state][slot]

    def carry(self, state: str, slot: int, carried: torch.Tensor) -> None:
        """See Memory.carry."""
        self._carried[state][slot] = carried.detach()

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Store rows at their slots: ``slots`` int32 [groups, rows]."""
        own = slots[self._group_of[state]].long()
        for kept, rows in ((self.keys[state], key), (self.values[state], value)):
            new = store(rows.detach(), self._states[state])
            kept.codes[own] = new.codes
            if kept.scales is not None and new.scales is not None:
                kept.scales[own] = new.scales

    @cached_property
    def parts(self) -> Sequence[Parts]:
        """Its bytes, block by block; they are the same memory as keys and values."""
        return [self._parts_of(group) for group in range(len(self.num_blocks))]

    def _parts_of(self, group: int) -> Parts:
        names = [name for name, own in self._group_of.items() if own == group]
        kept = [store[name] for store in (self.keys, self.values) for name in names]
        tensors = [*(rows.codes for rows in kept), *(rows.scales for rows in kept if rows.scales is not None)]
        return [tensor.view(torch.uint8).numpy().reshape(1, self.num_blocks[group], -1) for tensor in tensors]

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor | None
    ) -> tuple[StoredRows, StoredRows]:
        """Gather the sequence's slots in position order: ``block_tables`` int32 [groups, sequences, blocks]."""
        assert block_tables is not None, "paged KV is read through block tables"
        positions = torch.arange(context)
        table = block_tables[self._group_of[state], sequence].long()
        slots = table[positions // self.block_size] * self.block_size
        slots = slots + positions % self.block_size
        return self.keys[state].at(slots), self.values[state].at(slots)


@dataclass
class FunctionalMemory:
    """KV as values: every sequence is whole (positions from 0), so its keys are this run's rows. Autograd flows."""

    states: dict[str, PagedState]
    rows: dict[str, tuple[StoredRows, StoredRows]] = field(default_factory=dict)

    @staticmethod
    def of(program: Program) -> "FunctionalMemory":
        """An empty memory for one run of ``program``."""
        for state in program.states:
            if (reason := refuse_state(state)) is not None:
                raise UnsupportedError(f"the reference backend cannot keep {state.name}: {reason}")
        return FunctionalMemory({state.name: state for state in program.states})

    def write(self, state: str, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor | None) -> None:
        """Keep the rows, rounded as a paged state would."""
        self.rows[state] = (store(key, self.states[state]), store(value, self.states[state]))

    def carried(self, state: str, slot: int) -> None:
        """Whole sequences begin anew."""
        return None

    def carry(self, state: str, slot: int, carried: torch.Tensor) -> None:
        """Nothing comes after a whole sequence."""

    def read(
        self, state: str, sequence: int, start: int, stop: int, context: int, block_tables: torch.Tensor | None
    ) -> tuple[StoredRows, StoredRows]:
        """The sequence's own rows."""
        if context != stop - start:
            raise UnsupportedError(f"functional KV needs whole sequences; sequence {sequence} has earlier positions")
        key, value = self.rows[state]
        return key.at(slice(start, stop)), value.at(slice(start, stop))


def attention(
    query: torch.Tensor,
    query_start: torch.Tensor,
    context_lengths: torch.Tensor,
    block_tables: torch.Tensor | None,
    memory: Memory,
    state: str,
    attributes: Attention,
    sinks: torch.Tensor | None = None,
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
        keys, values = (_stack(part) for part in zip(*pairs, strict=True))
        queries = query[starts[sequence] : starts[last]].reshape(last - sequence, rows, -1)
        outputs.append(attend(queries, keys, values, context, attributes, sinks).flatten(0, 1))
        sequence = last
    return torch.cat(outputs)


def _stack(rows: Sequence[StoredRows]) -> StoredRows:
    scales = [one.scales for one in rows if one.scales is not None]
    return StoredRows(torch.stack([one.codes for one in rows]), torch.stack(scales) if scales else None)


def attend(
    query: torch.Tensor,
    key: StoredRows,
    value: StoredRows,
    context: int,
    attributes: Attention,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[batch, rows, heads * size] over keys [batch, context, kv_heads * size]; the rows are the last positions."""
    batch, rows = query.shape[:2]
    query = query.float().reshape(batch, rows, attributes.heads, -1).transpose(1, 2)
    if attributes.arithmetic == "bf16":
        query = query.bfloat16().float()
    keys, values = _by_head(key.codes, attributes), _by_head(value.codes, attributes)
    key_scales = None if key.scales is None else _by_head(key.scales, attributes)
    value_scales = None if value.scales is None else _by_head(value.scales, attributes)
    tiles = []
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        first, last = context - rows + start, context - rows + stop
        seen = slice(context if attributes.full else last)
        tiles.append(
            _attend_tile(
                query[:, :, start:stop],
                keys[:, :, seen],
                None if key_scales is None else key_scales[:, :, seen],
                values[:, :, seen],
                None if value_scales is None else value_scales[:, :, seen],
                torch.arange(first, last)[:, None],
                attributes,
                sinks,
            )
        )
    return torch.cat(tiles, dim=2).transpose(1, 2).reshape(batch, rows, -1)


def _attend_tile(
    query: torch.Tensor,
    keys: torch.Tensor,
    key_scales: torch.Tensor | None,
    values: torch.Tensor,
    value_scales: torch.Tensor | None,
    row_positions: torch.Tensor,
    attributes: Attention,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[batch, heads, rows, size] over [batch, heads, context, size]; ``row_positions`` [rows, 1]."""
    context = keys.shape[2]
    scores = (query @ keys.transpose(2, 3)) * attributes.scale
    if key_scales is not None:
        scores = scores * key_scales.transpose(2, 3)
    if attributes.softcap is not None:
        scores = softcap(scores, attributes.softcap)
    key_positions = torch.arange(context)
    if attributes.alibi_slopes is not None:
        scores = scores + torch.tensor(attributes.alibi_slopes)[:, None, None] * key_positions
    if not attributes.full:
        hidden = key_positions > row_positions
        if attributes.window is not None:
            hidden = hidden | (key_positions <= row_positions - attributes.window)
        scores = scores.masked_fill(hidden, float("-inf"))
    share = None
    if sinks is not None:
        share = sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
    weights = torch.softmax(scores if share is None else torch.cat((scores, share), dim=-1), dim=-1)[..., :context]
    if value_scales is not None:
        weights = weights * value_scales.transpose(2, 3)
    if attributes.arithmetic == "bf16":
        weights = _rounded_weights(weights, scores, share)
    return weights @ values


def _by_head(x: torch.Tensor, attributes: Attention) -> torch.Tensor:
    """[batch, context, kv_heads * size] -> fp32 [batch, heads, context, size]: every head with its KV head's part."""
    split = x.float().reshape(*x.shape[:2], attributes.kv_heads, -1).transpose(1, 2)
    return split.repeat_interleave(attributes.heads // attributes.kv_heads, dim=1)


def _rounded_weights(weights: torch.Tensor, scores: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """Weights rounded to bf16 as multiples of the greatest softmax weight of their partition of absolute positions;
    ``share``: a score whose weight counts in their sum alone."""
    context = weights.shape[-1]
    padding = -context % PARTITION_KEYS
    padded = torch.nn.functional.pad(scores, (0, padding), value=float("-inf"))
    top = padded.reshape(*padded.shape[:-1], -1, PARTITION_KEYS).amax(dim=-1, keepdim=True)
    whole = scores.amax(dim=-1, keepdim=True)
    normaliser = torch.exp(scores - whole).sum(dim=-1, keepdim=True)
    if share is not None:
        normaliser = normaliser + torch.exp(share - whole)
    greatest = (torch.exp(top.squeeze(-1) - whole) / normaliser).repeat_interleave(PARTITION_KEYS, dim=-1)[
        ..., :context
    ]
    safe = torch.where(greatest == 0, torch.ones_like(greatest), greatest)
    return (weights / safe).bfloat16().float() * safe
