# SPDX-License-Identifier: Apache-2.0
"""The status line: what happened since the last one, printed while there is traffic."""

import asyncio
import time
from collections.abc import Callable

from linnet.logs import json_line
from linnet.scheduler import SchedulerCounters


def summary(before: SchedulerCounters, now: SchedulerCounters, generated: float, elapsed_s: float) -> dict[str, float]:
    """Rates over the interval and the state at its end; the hit rate is that of the interval's lookups."""
    queries = now.prefix_query_tokens - before.prefix_query_tokens
    hits = now.prefix_hit_tokens - before.prefix_hit_tokens
    return {
        "generated_tokens_per_s": round(generated / elapsed_s, 1),
        "computed_tokens_per_s": round((now.computed_tokens - before.computed_tokens) / elapsed_s, 1),
        "running": now.running_requests,
        "waiting": now.waiting_requests,
        "kv_percent": round(100 * now.used_blocks / max(now.total_blocks, 1), 1),
        "prefix_hit_percent": round(100 * hits / queries, 1) if queries else 0.0,
        "preemptions": now.preemptions - before.preemptions,
    }


def sentence(facts: dict[str, float]) -> str:
    """For people."""
    return (
        f"{facts['generated_tokens_per_s']:,.1f} tokens/s generated, {facts['computed_tokens_per_s']:,.1f} computed; "
        f"{facts['running']:.0f} running, {facts['waiting']:.0f} waiting; KV cache {facts['kv_percent']:.1f} %, "
        f"prefix hits {facts['prefix_hit_percent']:.1f} %"
    )


async def report_status(
    counters: Callable[[], SchedulerCounters],
    generated: Callable[[], float],
    every_s: float,
    as_json: bool,
    say: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    idle: bool = False,
) -> None:
    """Runs until cancelled; silent when nothing was computed since the last line and nothing waits, unless ``idle``.
    ``look`` is called each time."""
    before, tokens, since = counters(), generated(), clock()
    while True:
        await asyncio.sleep(every_s)
        now, tokens_now, at = counters(), generated(), clock()
        look()
        if idle or now.steps != before.steps or now.running_requests or now.waiting_requests:
            facts = summary(before, now, tokens_now - tokens, max(at - since, 1e-9))
            say(json_line("status", facts) if as_json else sentence(facts))
        before, tokens, since = now, tokens_now, at
