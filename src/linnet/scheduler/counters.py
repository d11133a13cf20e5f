# SPDX-License-Identifier: Apache-2.0
"""What the scheduler tells the metrics page."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from .request import FinishReason


@dataclass(frozen=True, slots=True)
class SchedulerCounters:
    """A snapshot. The first block are gauges, the second only ever grows.

    kept_blocks: those of conversations and prompt modules, which are forgotten after all others, in use or not.
    prefix_query_tokens, prefix_hit_tokens: prompt tokens looked up in, and taken from, the prefix table at first
    admissions; a recompute after a preemption is not counted, so that preemptions cannot flatter the hit rate.
    reserved_slots, unused_slots: token slots of the blocks that requests took (shared ones once), and those of them
    that never held a token when they were given back: their quotient is the waste of KV memory.
    swap_blocks, swap_used_blocks: of the tier behind the prefix cache, and those of them that something is found in.
    swapped_out_blocks, swapped_in_blocks: copied to it and from it; swap_declined_blocks: found there, and computed all
    the same because that was faster.
    kept_swapped_out_blocks: those of swapped_out_blocks that a conversation or prompt module keeps.
    """

    running_requests: int
    waiting_requests: int
    total_blocks: int
    used_blocks: int
    cached_blocks: int
    free_blocks: int
    swap_blocks: int
    swap_used_blocks: int
    kept_blocks: int

    steps: int
    computed_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    reserved_slots: int
    unused_slots: int
    swapped_out_blocks: int
    swapped_in_blocks: int
    swap_declined_blocks: int
    kept_swapped_out_blocks: int
    finished: Mapping[FinishReason, int]

    def after(self, earlier: "SchedulerCounters") -> "SchedulerCounters":
        """The same gauges, and counts that go on where those of an earlier scheduler ended."""
        counts = [one.name for one in fields(self) if one.name not in (*GAUGES, "finished")]
        sums = {name: getattr(earlier, name) + getattr(self, name) for name in counts}
        reasons = {*earlier.finished, *self.finished}
        finished = {reason: earlier.finished.get(reason, 0) + self.finished.get(reason, 0) for reason in reasons}
        return replace(self, **sums, finished=finished)


GAUGES = (
    "running_requests", "waiting_requests", "total_blocks", "used_blocks", "cached_blocks", "free_blocks",
    "swap_blocks", "swap_used_blocks", "kept_blocks",
)  # fmt: skip
