# SPDX-License-Identifier: Apache-2.0
"""Which tokens of which requests the next step computes, and which blocks their keys and values live in.

The room owns integers only: no text, no tensors, no clock (`now` is an argument), no randomness. One step is
`schedule(now)` → `StepPlan`, the engine executes it, `commit(plan, result, now)` → events. See docs/scheduler.md.
"""

from .blocks import BlockPool
from .config import SchedulerConfig
from .counters import SchedulerCounters
from .groups import GIVEN_BACK, CacheGroup
from .invariants import InvariantError
from .plan import BlockMove, Ended, Event, StepItem, StepPlan, StepResult, TokenLogprob, Tokens
from .pools import BlockPools
from .prefix import extend_digests
from .request import FinishReason, Request, RequestState
from .residency import Kept
from .scheduler import Scheduler
from .swapping import CopyPrice
from .uses import Hidden, RowUse, Sample, Score, Verify

__all__ = [
    "GIVEN_BACK",
    "BlockMove",
    "BlockPool",
    "BlockPools",
    "CacheGroup",
    "CopyPrice",
    "Ended",
    "Event",
    "FinishReason",
    "Hidden",
    "InvariantError",
    "Kept",
    "Request",
    "RequestState",
    "RowUse",
    "Sample",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerCounters",
    "Score",
    "StepItem",
    "StepPlan",
    "StepResult",
    "TokenLogprob",
    "Tokens",
    "Verify",
    "extend_digests",
]
