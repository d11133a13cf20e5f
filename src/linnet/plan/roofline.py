# SPDX-License-Identifier: Apache-2.0
"""The roofline: how fast a model can possibly be, from bytes that must move and sums that must be made.

A bound, not a forecast (Williams et al. 2009): no kernel reaches both limits, none exceeds either.
"""

from dataclasses import dataclass
from typing import Literal

from linnet.errors import ConfigError
from linnet.plan.ledger import Ledger


@dataclass(frozen=True)
class Bound:
    """The most tokens a second, and which limit sets it."""

    tokens_per_s: float
    limited_by: Literal["memory", "compute"]


@dataclass(frozen=True)
class Roofline:
    """Bounds for decoding (one token per sequence and step) and prefill (a whole prompt in one pass)."""

    decode: Bound
    prefill: Bound


def roofline(
    ledger: Ledger,
    bandwidth_bytes_per_s: float,
    peak_operations_per_s: float,
    context_tokens: int = 1,
    sequences: int = 1,
) -> Roofline:
    """Bounds on a machine that moves ``bandwidth_bytes_per_s`` and makes ``peak_operations_per_s`` (a
    multiply-add is two) in the arithmetic that the ledger's policy uses.

    Decode: one step reads the weights once for all ``sequences`` and each sequence's KV. Prefill: a prompt of
    ``context_tokens``, weights read once, every query against the keys before it. ConfigError for a limit that is not
    positive.
    """
    for name, value in (
        ("bandwidth_bytes_per_s", bandwidth_bytes_per_s),
        ("peak_operations_per_s", peak_operations_per_s),
        ("context_tokens", context_tokens),
        ("sequences", sequences),
    ):
        if not value > 0:
            raise ConfigError(f"{name} must be positive, not {value}")

    def bound(tokens: int, moved_bytes: float, operations: float) -> Bound:
        memory_s, compute_s = moved_bytes / bandwidth_bytes_per_s, operations / peak_operations_per_s
        return Bound(tokens / max(memory_s, compute_s), "memory" if memory_s >= compute_s else "compute")

    carried = 2 * ledger.slot_bytes_per_sequence  # read and written
    moved = ledger.step_weight_bytes + sequences * (ledger.kv_bytes_read(context_tokens) + carried)
    attended = 4 * ledger.attention_width * context_tokens  # q.k and p.v, a multiply-add each
    decode = bound(sequences, moved, sequences * (2 * ledger.multiplications + attended))
    written = ledger.step_weight_bytes + context_tokens * ledger.kv_bytes_per_token
    last = 2 * (ledger.multiplications - ledger.prompt_multiplications)  # for the one row whose logits are wanted
    operations = last + context_tokens * (2 * ledger.prompt_multiplications + attended / 2)
    return Roofline(decode, bound(context_tokens, written, operations))
