# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of scheduling are told: which slice of a trace, whose prices, how large an engine."""

import argparse
from pathlib import Path

from linnet.scheduler import SchedulerConfig
from step_prices import PRICES
from trace_requests import dealt, read, shrunk
from virtual import Asked


def declare(parser: argparse.ArgumentParser) -> None:
    """Their options."""
    parser.add_argument("trace", type=Path)
    parser.add_argument("--prices", type=Path, default=PRICES)
    parser.add_argument("--model", default="SmolLM2-135M", help="whose prices")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--skip", type=int, default=0, help="requests of the trace before the slice")
    parser.add_argument("--divisor", type=int, default=1, help="of the lengths of prompts")
    parser.add_argument(
        "--most-new", type=int, default=512, help="answers are cut there, and that is what they ask for"
    )
    parser.add_argument("--context", type=int, default=8192, help="longer requests are left out")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=2048, help="of 16 token slots")
    parser.add_argument("--step-budget", type=float, default=0.1, help="seconds; 0: the token budget only")
    parser.add_argument("--ageing", type=float, default=0.0, help="seconds; 0: as the policy has it")
    parser.add_argument("--modest", type=int, default=4, help="tenants besides the greedy one")
    parser.add_argument("--greed", type=int, default=10, help="how much more the greedy one asks for than another")
    parser.add_argument("--seed", type=int, default=1)


def slice_of(options: argparse.Namespace) -> list[Asked]:
    """The requests that are replayed, with the trace's own arrivals."""
    fitting = shrunk(read(options.trace), options.divisor, options.context, options.most_new)
    return dealt(fitting[options.skip : options.skip + options.requests], options.modest, options.greed, options.seed)


def config_of(options: argparse.Namespace) -> SchedulerConfig:
    """The scheduler's, but for the policy."""
    return SchedulerConfig(
        num_blocks=options.blocks,
        max_model_len=options.context,
        max_sequences=options.sequences,
        max_waiting_requests=100_000,
        step_budget_s=options.step_budget or None,
        ageing_s=options.ageing or None,
    )
