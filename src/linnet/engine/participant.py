# SPDX-License-Identifier: Apache-2.0
"""Models that take part in the same steps: each with its own weights, keys and values, over one set of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from linnet.backends.interface import Executable
from linnet.errors import ConfigError
from linnet.scheduler import CacheGroup, SchedulerConfig


@dataclass(frozen=True)
class Participant:
    """A model that computes the rows of the items which name it; vocabulary and limits are the same for all.

    slots: of each cache group, uint8 [slots, stored_bytes_per_block] of the tier behind the prefix cache; none without.
    """

    executable: Executable
    states: object
    slots: Sequence[np.ndarray] = ()


def _common_group(one: CacheGroup, other: CacheGroup) -> CacheGroup:
    """Blocks that both have, given back when neither looks back at them."""
    windows = None if one.window is None or other.window is None else max(one.window, other.window)
    return CacheGroup(min(one.num_blocks, other.num_blocks), windows)


def common_config(one: SchedulerConfig, other: SchedulerConfig) -> SchedulerConfig:
    """Settings that two executables were prepared for. Scores need no prefix cache."""
    if len(one.groups) != len(other.groups):
        raise ConfigError(
            f"layers of one model look back in {len(one.groups)} ways, those of the other in {len(other.groups)}; two "
            "models in lockstep must have the same windows"
        )
    first, *more = map(_common_group, one.groups, other.groups)
    if one.block_size != other.block_size:
        raise ConfigError(f"block sizes {one.block_size} and {other.block_size} differ; open both models alike")
    sequences = min(one.max_sequences, other.max_sequences)
    return replace(
        one,
        num_blocks=first.num_blocks,
        window=first.window,
        more_groups=tuple(more),
        max_model_len=min(one.max_model_len, other.max_model_len),
        token_budget=min(one.token_budget, other.token_budget),
        max_sequences=sequences,
        max_output_rows=max(min(one.output_rows, other.output_rows), sequences),
        max_chunk_tokens=None,
        prefix_cache=False,
        state_slots=sequences if one.state_slots or other.state_slots else 0,
        swap_blocks=0,
        preempt_every=None,
    )
