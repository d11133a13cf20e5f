# SPDX-License-Identifier: Apache-2.0
"""What continuous batching over a paged cache buys: four ways of batching in equal KV memory, and what batches cost.

    python bench/batching.py TRACE [--prices FILE] [--model NAME] [--requests 300] [--window 1] [--slack 4] [--real DIR]
        [--json FILE] [--png FILE]

All four run the real scheduler on the same slice of a trace (see traces.py), first come first served:

* static:     batches of a fixed size; every request reserves the longest length; answers are given when all are done;
* dynamic:    the same, but a batch is whoever came within --window seconds;
* iteration:  requests come and go at every step (Orca), and reserve the longest length;
* continuous: requests come and go at every step, and take blocks as they grow: what Linnet does.

The first two are better here than they were: nobody computes padding. Printed: the requests a second that each answers
with the 99th percentile of completion times within --slack times that of the requests alone, and the share of reserved
slots that never hold a token. Then, over the batch size: tokens a second and seconds between tokens; seconds to the
first token over the length of a prompt; and ten requests one at a time, five and ten at once. --real measures these
three on an engine as well.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import trace_options
from lines import note
from linnet.scheduler import SchedulerConfig
from step_prices import Prices
from trace_figures import held_share, quantile
from trace_requests import all_at_once, at_rate
from virtual import Asked, DynamicBatches, Gate, Replay, StaticBatches, VirtualWorld, replay

SIZES = (1, 2, 4, 8, 16, 32, 64)
SHARES = tuple(2 * 0.85**step for step in range(18))
PROMPTS = (16, 32, 64, 128, 256, 512, 960)
Play = Callable[[SchedulerConfig, Sequence[Asked]], Replay]


@dataclass(frozen=True)
class Way:
    """Of batching: how many sequences at once, when they are handed over, whether each reserves the longest length."""

    name: str
    sequences: int
    gate: Gate
    reserves: bool


def ways(options: argparse.Namespace) -> list[Way]:
    """The four; whoever reserves has room for so many sequences only."""
    seats = max(16 * options.blocks // options.context, 1)
    return [
        Way("static", seats, StaticBatches(seats), True),
        Way("dynamic", seats, DynamicBatches(seats, options.window), True),
        Way("iteration", seats, Gate(), True),
        Way("continuous", options.sequences, Gate(), False),
    ]


def best_rate(
    way: Way, config: SchedulerConfig, prices: Prices, asked: Sequence[Asked], bound_s: float
) -> Replay | None:
    """The replay at the highest rate whose 99th percentile is within the bound; None if it is at none.

    Batches of a fixed size keep no bound at low rates either, since they wait to be filled: so rates are tried from
    above, as SHARES of what is answered when all requests are there at once, and then between the last two.
    """
    settings = replace(config, max_sequences=way.sequences)

    def at(rate: float) -> Replay | None:
        tried = replay(VirtualWorld(settings, prices.step_s), at_rate(asked, rate), way.gate)
        return tried if quantile((one.completion_s for one in tried.felt), 0.99) <= bound_s else None

    most = len(asked) / replay(VirtualWorld(settings, prices.step_s), all_at_once(asked), way.gate).end_s
    below, found = next(((share * most, kept) for share in SHARES if (kept := at(share * most))), (0.0, None))
    if found is None:
        return None
    above = below * SHARES[0] / SHARES[1]
    for _ in range(3):
        middle = (below + above) / 2
        if kept := at(middle):
            below, found = middle, kept
        else:
            above = middle
    return found


def compare(options: argparse.Namespace, prices: Prices, config: SchedulerConfig) -> list[dict[str, Any]]:
    """The four ways at the rate each can keep."""
    asked = trace_options.slice_of(options)
    alone = [prices.alone_s(one.prompt_tokens, one.new_tokens, config.token_budget) for one in asked]
    bound_s = options.slack * quantile(alone, 0.99)
    rows = []
    for way in ways(options):
        found = best_rate(way, config, prices, asked, bound_s)
        row: dict[str, Any] = {"way": way.name, "sequences": way.sequences, "bound_s": bound_s}
        if found is not None:
            last = max(one.asked.arrival_s for one in found.felt)
            row |= {
                "per_s": len(asked) / last,
                "tokens_per_s": found.new_tokens / last,
                "p99_s": quantile((one.completion_s for one in found.felt), 0.99),
                "p50_s": quantile((one.completion_s for one in found.felt), 0.5),
                "waste": 1 - held_share(found.felt, options.context) if way.reserves else found.waste,
            }
        else:
            row |= {"per_s": 0.0, "tokens_per_s": 0.0, "p99_s": inf, "p50_s": inf, "waste": inf}
        rows.append(row)
    return rows


def virtually(prices: Prices, config: SchedulerConfig, asked: Sequence[Asked]) -> Replay:
    """In virtual time."""
    return replay(VirtualWorld(config, prices.step_s), asked)


def really(directory: Path, config: SchedulerConfig, asked: Sequence[Asked]) -> Replay:
    """On a real engine."""
    from trace_engine import really as run_on_engine

    return run_on_engine(directory, config, asked)[0]


def over_sizes(play: Play, config: SchedulerConfig, prompt: int, new: int) -> list[dict[str, float]]:
    """Four batches' worth of equal requests at each batch size: tokens a second, and seconds between two tokens."""
    rows = []
    for size in SIZES:
        asked = [Asked(0.0, prompt, new) for _ in range(max(2 * size, 4))]
        found = play(replace(config, max_sequences=size), asked)
        gaps = [(one.last_s - one.first_s) / (one.tokens - 1) for one in found.felt]
        rate = found.new_tokens / (found.end_s - found.begin_s)
        rows.append({"sequences": size, "tokens_per_s": rate, "between_s": quantile(gaps, 0.5)})
    return rows


def over_prompts(play: Play, config: SchedulerConfig) -> list[dict[str, float]]:
    """Seconds to the first token of a prompt that has the engine to itself."""
    felt = [play(config, [Asked(0.0, tokens, 1)]).felt[0] for tokens in PROMPTS]
    return [{"prompt_tokens": one.asked.prompt_tokens, "first_s": one.first_token_s} for one in felt]


def at_once(play: Play, config: SchedulerConfig, prompt: int, new: int) -> list[dict[str, float]]:
    """Ten requests, so many at once: seconds until all are done, and how much sooner than one at a time."""
    asked = [Asked(0.0, prompt, new) for _ in range(10)]
    rows = []
    for size in (1, 5, 10):
        found = play(replace(config, max_sequences=size), asked)
        rows.append({"at_once": size, "seconds": found.end_s - found.begin_s})
    return [row | {"sooner": rows[0]["seconds"] / row["seconds"]} for row in rows]


def table_of(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Any rows of the same names."""
    shown = Table(*rows[0], title=title)
    for row in rows:
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return shown


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trace_options.declare(parser)
    parser.add_argument("--window", type=float, default=1.0, help="seconds in which a dynamic batch is formed")
    parser.add_argument("--slack", type=float, default=4.0, help="completion times at most, in those of a lone request")
    parser.add_argument("--prompt", type=int, default=64, help="of the requests over batch sizes")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--real", type=Path, help="a model to measure on, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    prices, config = Prices.load(options.prices, options.model), trace_options.config_of(options)
    rows = compare(options, prices, config)
    console = Console(width=140)
    console.print(table_of(f"{options.trace.name}: {options.requests} requests, {options.model}, virtual time", rows))
    worlds: dict[str, Play] = {"virtual": partial(virtually, prices)}
    if options.real:
        worlds["real"] = partial(really, options.real)
    found: dict[str, Any] = {"trace": options.trace.name, "model": options.model, "ways": rows}
    for world, play in worlds.items():
        for name, measured in (
            ("over_sizes", over_sizes(play, config, options.prompt, options.new)),
            ("over_prompts", over_prompts(play, config)),
            ("at_once", at_once(play, config, options.prompt, options.new)),
        ):
            found[f"{name}.{world}"] = measured
            console.print(table_of(f"{name}, {world}", measured))
    note(found, options.json)
    if options.png:
        from trace_picture import draw_batching

        draw_batching(found, options.png)


if __name__ == "__main__":
    main()
