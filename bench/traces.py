# SPDX-License-Identifier: Apache-2.0
"""Scheduling policies on a slice of a real trace, in virtual time; with --real on a real engine beside it.

    python bench/traces.py TRACE [--prices FILE] [--model NAME] [--requests 600] [--skip 0] [--divisor 1]
        [--loads 0.5,0.8,1.1] [--policies fcfs,mlfq,shortest,oracle,fair] [--real DIR] [--json FILE] [--png FILE]

TRACE is an Azure CSV or a Mooncake JSONL file. The slice keeps its order, the shape of its arrivals and its lengths
(prompts may be divided for a small model); arrivals are spread so that the load is a share of the capacity, which is
what the engine answers in a second when all requests are there at once. Requests are dealt to tenants, of which one is
greedy. In virtual time the real scheduler plans every step and a step takes what the fitted prices say
(trace_engine.py measures them). --real replays the same requests on an engine in this process, too. Then there are
three rows: 'virtual' is what prices measured just before let expect, 'real' what came out, and 'again' is virtual time
with the prices of the real run's own steps: the machine may have become slower or faster meanwhile.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import trace_options
from lines import note
from linnet.scheduler import SchedulerConfig
from step_prices import Prices
from trace_figures import Alone, figures
from trace_picture import draw
from trace_requests import all_at_once, at_rate
from virtual import Asked, VirtualWorld, replay

POLICIES = ("fcfs", "mlfq", "shortest", "oracle", "fair")
SHOWN = {
    "mean_s": "mean",
    "p50_s": "p50",
    "p99_s": "p99",
    "first_p50_s": "first p50",
    "first_p99_s": "first p99",
    "slowdown_mean": "slowdown",
    "slowdown_p99": "p99",
    "preemptions": "preempted",
    "again": "again",
    "modest_mean_s": "modest",
    "greedy_mean_s": "greedy",
    "service_gap": "gap",
    "jain": "Jain",
}
"""Columns of the table; times in seconds."""


def virtually(config: SchedulerConfig, prices: Prices, asked: Sequence[Asked], alone_s: Alone) -> dict[str, float]:
    """What one replay in virtual time comes to."""
    return figures(replay(VirtualWorld(config, prices.step_s), asked), alone_s)


def capacity_per_s(config: SchedulerConfig, prices: Prices, asked: Sequence[Asked]) -> float:
    """Requests answered in a second when none is waited for."""
    return len(asked) / replay(VirtualWorld(config, prices.step_s), all_at_once(asked)).end_s


def ordered(config: SchedulerConfig, policy: str, asked: Sequence[Asked]) -> tuple[SchedulerConfig, Sequence[Asked]]:
    """The scheduler of a policy; 'oracle' is 'shortest' for requests that say how long their answers will be."""
    if policy != "oracle":
        return replace(config, policy=policy), asked
    known = [replace(one, most_tokens=0) for one in asked]
    return replace(config, policy="shortest", predict_length="limit"), known


def table_of(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One line a replay."""
    shown = Table("load", "policy", "world", *SHOWN.values(), title=title)
    for row in rows:
        cells = [f"{row[name]:,.0f}" if row[name] >= 1000 else f"{row[name]:.3g}" for name in SHOWN]
        shown.add_row(f"{row['load']:g}", row["policy"], row["world"], *cells)
    return shown


def really(
    directory: Path, config: SchedulerConfig, asked: Sequence[Asked], alone_s: Alone
) -> Iterator[dict[str, Any]]:
    """Expected, measured on a real engine, and expected of the prices that its own steps had."""
    from trace_engine import really as run_on_engine

    found, before, own, cores = run_on_engine(directory, config, asked)
    yield {"world": "virtual"} | virtually(config, before, asked, alone_s)
    yield {"world": "real", "foreign_cores": cores} | figures(found, alone_s)
    yield {"world": "again"} | virtually(config, own, asked, alone_s)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every load under every policy."""
    config, asked = trace_options.config_of(options), trace_options.slice_of(options)
    prices = Prices.load(options.prices, options.model)
    capacity = capacity_per_s(config, prices, asked)

    def alone_s(one: Asked) -> float:
        return prices.alone_s(one.prompt_tokens, one.new_tokens, config.token_budget)

    for load in map(float, options.loads.split(",")):
        for policy in options.policies.split(","):
            settings, arriving = ordered(config, policy, at_rate(asked, load * capacity))
            common = {
                "trace": options.trace.name,
                "model": options.model,
                "requests": len(asked),
                "per_s": load * capacity,
                "load": load,
                "policy": policy,
            }
            if options.real:
                yield from (common | row for row in really(options.real, settings, arriving, alone_s))
            else:
                yield common | {"world": "virtual"} | virtually(settings, prices, arriving, alone_s)


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trace_options.declare(parser)
    parser.add_argument("--loads", default="0.5,0.8,1.1", help="shares of the capacity")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--real", type=Path, help="a model to replay on, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    rows = []
    for row in run(options):
        note(row, options.json)
        rows.append(row)
    title = f"{options.trace.name}, {rows[0]['requests']} requests, {options.model}"
    Console(width=160).print(table_of(title, rows))
    if options.png:
        draw(rows, options.png)


if __name__ == "__main__":
    main()
