# SPDX-License-Identifier: Apache-2.0
"""Convolution and selective scan along sequences: one row after the other, from what the sequence carries."""

from collections.abc import Sequence

import torch

from linnet.backends.reference.attention import Memory
from linnet.errors import UnsupportedError
from linnet.program.attributes import Scan


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    of_rows: Sequence[torch.Tensor],
    memory: Memory,
    state: str,
) -> torch.Tensor:
    """fp32 [tokens, width] of x [tokens, width], weight [width, 1, taps]; ``of_rows``: query_start, positions and
    state_slots."""
    taps = weight.shape[2]
    made = []
    for start, stop, fresh, slot in _sequences(of_rows):
        before = None if fresh else _carried(memory, state, slot)
        rows = x[start:stop].float()
        padded = torch.cat((rows.new_zeros(taps - 1, rows.shape[1]) if before is None else before, rows))
        sums = torch.zeros_like(rows) if bias is None else bias.expand_as(rows)
        for tap in range(taps):
            sums = sums + weight[:, 0, tap] * padded[tap : tap + len(rows)]
        memory.carry(state, slot, padded[len(rows) :])
        made.append(sums)
    return torch.cat(made)


def scan(
    given: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    attributes: Scan,
    memory: Memory,
    state: str,
) -> torch.Tensor:
    """fp32 [tokens, width]; ``given`` and ``weights`` as ``program.attributes.Scan`` lists them. Sequences of one
    length are computed together."""
    x, steps, inward, outward, *of_rows = given
    width = x.shape[1]

    def by_channel(values: torch.Tensor) -> torch.Tensor:
        return values.float().repeat_interleave(attributes.head_size, dim=-1)

    decay = -torch.exp(weights[0].float())
    decay = decay.reshape(len(decay), -1).repeat_interleave(attributes.head_size, dim=0)  # [width, states or 1]
    skip = by_channel(weights[1])
    raw = by_channel(steps)
    step = torch.nn.functional.softplus(raw if len(weights) < 3 else raw + by_channel(weights[2]))
    of_group = width // attributes.groups

    def of_channels(values: torch.Tensor) -> torch.Tensor:
        """[..., groups * states] -> [..., width, states]"""
        split = values.float().reshape(*values.shape[:-1], attributes.groups, attributes.states)
        return split.repeat_interleave(of_group, dim=-2)

    made: dict[int, torch.Tensor] = {}
    sequences = _sequences(of_rows)
    for length in {stop - start for start, stop, _, _ in sequences}:
        alike = [one for one in sequences if one[1] - one[0] == length]
        rows = torch.stack([torch.arange(start, stop) for start, stop, _, _ in alike])
        begun = [None if fresh else _carried(memory, state, slot) for _, _, fresh, slot in alike]
        carried = torch.stack([x.new_zeros(width, attributes.states) if one is None else one.T for one in begun])
        outputs = []
        for row in rows.T:
            here, taken = step[row][..., None], x[row].float()
            carried = torch.exp(here * decay) * carried + here * taken[..., None] * of_channels(inward[row])
            outputs.append((carried * of_channels(outward[row])).sum(dim=-1) + skip * taken)
        for index, (start, _, _, slot) in enumerate(alike):
            memory.carry(state, slot, carried[index].T)
            made[start] = torch.stack([output[index] for output in outputs])
    return torch.cat([made[start] for start, _, _, _ in sequences])


def _sequences(of_rows: Sequence[torch.Tensor]) -> list[tuple[int, int, bool, int]]:
    """First row, last, whether it begins here, its slot."""
    query_start, positions, slots = (values.tolist() for values in of_rows)
    bounds = zip(query_start, query_start[1:], slots, strict=False)
    return [(start, stop, positions[start] == 0, slot) for start, stop, slot in bounds]


def _carried(memory: Memory, state: str, slot: int) -> torch.Tensor:
    found = memory.carried(state, slot)
    if found is None:
        raise UnsupportedError("functional states need whole sequences; one has earlier positions")
    return found
