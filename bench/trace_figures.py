# SPDX-License-Identifier: Apache-2.0
"""What people feel of a replay: times, slowdown, and whether tenants get what is theirs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from trace_requests import GREEDY
from virtual import Asked, Felt, Replay

Alone = Callable[[Asked], float]
"""Seconds of a request that has the engine to itself."""


def quantile(samples: Iterable[float], share: float) -> float:
    """The smallest sample that `share` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def figures(found: Replay, alone_s: Alone) -> dict[str, float]:
    """Of one replay; seconds unless the name says otherwise.

    slowdown:      completion time ÷ what the request would take alone.
    per_token_s:   completion time ÷ new tokens, on average: the normalised latency of Orca and vLLM.
    again:         tokens computed again ÷ tokens computed for the first time.
    service_gap:   see `service_gap`.
    """
    slowdowns = [one.completion_s / alone_s(one.asked) for one in found.felt]
    fresh = sum(one.asked.prompt_tokens + one.tokens - 1 for one in found.felt)
    greedy = [one.completion_s for one in found.felt if one.asked.tenant == GREEDY]
    modest = [one.completion_s for one in found.felt if one.asked.tenant != GREEDY]
    return {
        "mean_s": fmean(one.completion_s for one in found.felt),
        "p50_s": quantile((one.completion_s for one in found.felt), 0.5),
        "p99_s": quantile((one.completion_s for one in found.felt), 0.99),
        "first_p50_s": quantile((one.first_token_s for one in found.felt), 0.5),
        "first_p99_s": quantile((one.first_token_s for one in found.felt), 0.99),
        "slowdown_mean": fmean(slowdowns),
        "slowdown_p99": quantile(slowdowns, 0.99),
        "per_token_s": fmean(one.completion_s / one.tokens for one in found.felt),
        "tokens_per_s": found.new_tokens / (found.end_s - found.begin_s),
        "preemptions": found.preemptions,
        "again": found.computed_again / fresh,
        "modest_mean_s": fmean(modest) if modest else 0.0,
        "greedy_mean_s": fmean(greedy) if greedy else 0.0,
        "service_gap": service_gap(found),
        "jain": jain(found),
    }


def service_gap(found: Replay) -> float:
    """The most that any tenant was served beyond another while both had requests waiting, in weighted tokens.

    What Sheng et al., Fairness in Serving LLMs, 2024, bound (Theorem 4.3). A request waits until its first computing.
    """
    tenants = sorted({one.asked.tenant for one in found.felt})
    events: list[tuple[float, int, bytes, int]] = []  # when, 0 comes | 1 is served | 2 begins, whose, how much
    for one in found.felt:
        events += [(one.asked.arrival_s, 0, one.asked.tenant, 1), (one.begun_s, 2, one.asked.tenant, -1)]
    events += [(when, 1, tenant, weight) for when, tenant, weight in found.served]
    events.sort(key=lambda event: event[:2])
    waiting: dict[bytes, int] = defaultdict(int)
    ahead: dict[tuple[bytes, bytes], tuple[float, float, float]] = {}  # now, least and most since both wait
    widest = 0.0
    pairs = [(one, other) for place, one in enumerate(tenants) for other in tenants[place + 1 :]]
    for _, kind, tenant, amount in events:
        if kind != 1:
            waiting[tenant] += amount
        for pair in pairs:
            if tenant not in pair:
                continue
            if not (waiting[pair[0]] and waiting[pair[1]]):
                ahead.pop(pair, None)
                continue
            now, least, most = ahead.get(pair, (0.0, 0.0, 0.0))
            if kind == 1:
                now += amount if tenant == pair[0] else -amount
            least, most = min(least, now), max(most, now)
            ahead[pair] = now, least, most
            widest = max(widest, most - least)
    return widest


def jain(found: Replay) -> float:
    """Jain's index of what tenants were served until the last arrival, over their max-min fair shares. 1: fair."""
    end = max(one.asked.arrival_s for one in found.felt)
    served: dict[bytes, float] = defaultdict(float)
    asked: dict[bytes, float] = defaultdict(float)
    for when, tenant, weight in found.served:
        asked[tenant] += weight
        served[tenant] += weight * (when <= end)
    if not any(served.values()):
        return 1.0
    fair = max_min(asked, sum(served.values()))
    shares = [served[tenant] / fair[tenant] for tenant in asked]
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def max_min(asked: dict[bytes, float], total: float) -> dict[bytes, float]:
    """The max-min fair shares of a total: nobody gets more than asked for, and what is left is shared evenly."""
    left, shares = total, {}
    for place, (tenant, wanted) in enumerate(sorted(asked.items(), key=lambda item: item[1])):
        shares[tenant] = min(wanted, left / (len(asked) - place))
        left -= shares[tenant]
    return shares


def held_share(felt: Sequence[Felt], reserved_tokens: int) -> float:
    """Of slots that are reserved for every request alike: the share that ever holds a token."""
    return fmean((one.asked.prompt_tokens + one.tokens - 1) / reserved_tokens for one in felt)
