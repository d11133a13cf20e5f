# SPDX-License-Identifier: Apache-2.0
"""What it buys to leave KV memory free for those who run when another request begins, in virtual time.

    python bench/reserves.py TRACE [--blocks 1024] [--load 1.0] [--most-new 512] …

The same slice of a real trace at the same rate under each of `reserve`: none (a request holds blocks for its known
tokens, and each of those who run may still take one), past (what answers are expected to need is left free, in windows
that grow as they go on) and limit (what they may need: nobody ever makes way, as where the longest is reserved). The
real scheduler plans every step; a step takes what the fitted prices say (see traces.py, which has the other options).
"""

import argparse
from dataclasses import replace

import trace_options
from linnet.scheduler import SchedulerConfig
from step_prices import Prices
from trace_figures import figures
from trace_requests import all_at_once, at_rate
from virtual import Asked, VirtualWorld, replay

RESERVES = ("none", "past", "limit")


def rows(
    config: SchedulerConfig, prices: Prices, asked: list[Asked], load: float, most_new: int
) -> list[dict[str, float]]:
    """One replay for each kind, at the same rate: a share of what is answered in a second when memory is not short."""
    spacious = replace(config, num_blocks=config.max_sequences * -(-config.max_model_len // config.block_size))
    whole = replay(VirtualWorld(spacious, prices.step_s), all_at_once(asked))
    arriving = [replace(one, most_tokens=most_new) for one in at_rate(asked, load * len(asked) / whole.end_s)]

    def alone_s(one: Asked) -> float:
        return prices.alone_s(one.prompt_tokens, one.new_tokens, config.token_budget)

    found = []
    for reserve in RESERVES:
        chosen = replace(config, reserve=reserve)
        ran = replay(VirtualWorld(chosen, prices.step_s), arriving)
        tokens_per_s = ran.new_tokens / (ran.end_s - ran.begin_s)
        found.append(figures(ran, alone_s) | {"tokens_per_s": tokens_per_s})
    return found


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trace_options.declare(parser)
    parser.add_argument("--load", type=float, default=1.0)
    options = parser.parse_args()
    config = trace_options.config_of(options)
    prices = Prices.load(options.prices, options.model)
    found = rows(config, prices, trace_options.slice_of(options), options.load, options.most_new)
    print("| reserve | preempted | computed again | new tokens/s | mean (s) | p99 (s) | first token p50, p99 (s) |")
    print("|---|---|---|---|---|---|---|")
    for reserve, row in zip(RESERVES, found, strict=True):
        print(
            f"| {reserve} | {row['preemptions']:.0f} | {row['again']:.3f} | {row['tokens_per_s']:,.0f} "
            f"| {row['mean_s']:.2f} | {row['p99_s']:.2f} | {row['first_p50_s']:.2f}, {row['first_p99_s']:.2f} |"
        )


if __name__ == "__main__":
    main()
