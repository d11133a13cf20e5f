# SPDX-License-Identifier: Apache-2.0
"""Requests that push each other out of the KV cache: computed again, or copied to memory or to a file and back.

    python bench/swapping.py MODEL [--requests 8] [--prompt 512] [--new 64] [--share 0.4] [--rounds 3] [--dir DIR]

All requests are there at once and the KV cache holds a share of what they come to, so the last ones are preempted and
come back. Interleaved rounds, each with an engine of its own: the tokens must be the same in all. 'measured' is what a
server does, which weighs the time of a copy against that of computing; 'always' loads whatever is found.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from linnet.api import LLM, SamplingParams

KINDS = ("recompute", "memory", "memory, always", "file", "file, always")


def run(model: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One engine, all requests."""
    prompts = [
        [(7 * index + 3 * place) % 1000 + 10 for place in range(options.prompt)] for index in range(options.requests)
    ]
    blocks = options.requests * -(-(options.prompt + options.new) // 16)
    place: dict[str, Any] = {} if kind == "recompute" else {"kv_swap_bytes": 1 << 30}
    if kind.startswith("file"):
        place["kv_swap_dir"] = options.dir
    with LLM(model, num_blocks=int(blocks * options.share), max_model_len=options.prompt + options.new, **place) as llm:
        swapping = llm._engine.scheduler.swapping
        if swapping is not None and kind.endswith("always"):
            swapping._computing_is_faster = lambda *args: False  # type: ignore[method-assign]
        params = SamplingParams(max_tokens=options.new, temperature=0.0, ignore_eos=True)
        began_s = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds, counters = time.perf_counter() - began_s, llm.counters()
        prices = (0.0, 0.0) if swapping is None else (swapping.store.seconds, swapping.load.seconds)
    return {
        "seconds": seconds,
        "preempted": counters.preemptions,
        "computed": counters.computed_tokens,
        "out": counters.swapped_out_blocks,
        "in": counters.swapped_in_blocks,
        "declined": counters.swap_declined_blocks,
        "store_us": 1e6 * prices[0],
        "load_us": 1e6 * prices[1],
        "tokens": [one.outputs[0].token_ids for one in outputs],
    }


def main() -> None:
    """Run the rounds, print one table: the fastest round of each kind, and its ratio to recomputing in every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.4, help="of all requests' blocks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            found[kind].append(run(options.model, kind, options))
    first = found["recompute"][0]["tokens"]
    assert all(one["tokens"] == first for rows in found.values() for one in rows), "swapping changes no token"
    print(
        "| blocks that went | seconds | of recomputing | preempted | computed | out, in, declined | store, load (µs) |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind, rows in found.items():
        best = min(rows, key=lambda one: float(one["seconds"]))
        pairs = zip(rows, found["recompute"], strict=True)
        ratios = sorted(mine["seconds"] / plain["seconds"] for mine, plain in pairs)
        print(
            f"| {kind} | {best['seconds']:.2f} | {ratios[0]:.2f} - {ratios[-1]:.2f} | {best['preempted']} "
            f"| {best['computed']:,} | {best['out']}, {best['in']}, {best['declined']} "
            f"| {best['store_us']:.0f}, {best['load_us']:.0f} |"
        )


if __name__ == "__main__":
    main()
