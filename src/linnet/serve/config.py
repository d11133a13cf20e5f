# SPDX-License-Identifier: Apache-2.0
"""What bounds a server's unfinished work. What an operator decides is in ``linnet.settings``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How much unfinished work is accepted, running and waiting together; beyond it the answer is 429."""

    samples: int
    prompt_tokens: int = 1 << 20
    body_bytes: int = 64 << 20
