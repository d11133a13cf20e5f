# SPDX-License-Identifier: Apache-2.0
"""What the thread pool costs: an empty parallel region, hot and after a pause, and the processor time of idling.

    python bench/threads.py [--threads N] [--rounds 7] [--json FILE]

The time between two regions is spent by the caller alone, as between two ops of a step. One JSON line last.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

from lines import note
from linnet.backends.cpu import _native

REGIONS = 20_000
PAUSES_S = (0.0, 1e-5, 1e-4, 1e-2)
IDLE_S = 0.5


def after_pause_s(pool: object, items: int, pause_s: float) -> float:
    """A region after the caller was busy for `pause_s`: the workers spin for the first 40 microseconds of it."""
    samples = []
    for _ in range(200 if pause_s < 1e-3 else 30):
        until = time.perf_counter() + pause_s
        while time.perf_counter() < until:
            pass
        samples.append(pool.region_s(items, 1))  # type: ignore[attr-defined]
    return statistics.median(samples)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="append the line to this file")
    options = parser.parse_args()
    pool = _native.ThreadPool(options.threads)
    pool.region_s(16, REGIONS)
    found: dict[str, float] = {"threads": options.threads}
    for items in (options.threads, 8 * options.threads):
        samples = [1e9 * pool.region_s(items, REGIONS) for _ in range(options.rounds)]
        median, least, most = statistics.median(samples), min(samples), max(samples)
        found[f"region_{items}_items_ns"] = median
        print(f"empty region of {items} items: {median:.0f} ns [{least:.0f} - {most:.0f}]")
    for pause_s in PAUSES_S:
        found[f"after_{pause_s:g}_s_us"] = 1e6 * after_pause_s(pool, options.threads, pause_s)
        print(f"after {1e6 * pause_s:.0f} us alone: {found[f'after_{pause_s:g}_s_us']:.2f} us")
    before, began = time.process_time(), time.perf_counter()
    time.sleep(IDLE_S)
    found["idle_share"] = (time.process_time() - before) / (time.perf_counter() - began)
    print(f"idle: {found['idle_share']:.3%} of one core ({len(os.listdir('/proc/self/task'))} threads)")
    note(found, options.json)


if __name__ == "__main__":
    main()
