# SPDX-License-Identifier: Apache-2.0
"""Models that take part in the same steps: each with its own weights, keys and values, over one set of blocks."""

from dataclasses import dataclass, field, replace

import numpy as np

from linnet.backends.interface import Executable
from linnet.errors import ConfigError
from linnet.scheduler import SchedulerConfig


@dataclass(frozen=True)
class Participant:
    """A model that computes the rows of the items which name it; vocabulary and limits are the same for all.

    slots: uint8 [slots, stored_bytes_per_block], of the tier behind the prefix cache; none without it.
    """

    executable: Executable
    states: object
    slots: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))


def common_config(one: SchedulerConfig, other: SchedulerConfig) -> SchedulerConfig:
    """Settings that two executables were prepared for. Scores need no prefix cache."""
    if one.block_size != other.block_size:
        raise ConfigError(f"block sizes {one.block_size} and {other.block_size} differ; open both models alike")
    sequences = min(one.max_sequences, other.max_sequences)
    return replace(
        one,
        num_blocks=min(one.num_blocks, other.num_blocks),
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
