# SPDX-License-Identifier: Apache-2.0
"""Every OpCase's speed as a share of what the machine allows, limits and case measured in turns; then whole layers.

    python bench/ops.py [--threads N] [--isa NAME] [--repeats 7] [--only TEXT] [--json FILE]

An op runs where it runs in a model: inside a Program that the backend executes, with tiles where the backend makes
them, timed by the executor. GB/s counts what the op must read and write, once (op_counts.py): weights, keys and values
as stored, of which enough copies take turns that they come from memory, and activations, which lie in the caches; where
those are most of it, more than 100 % of the read bandwidth is no mistake. A share is the median of quotients with the
probe taken just before; the range shows how much to believe. A 2:4 weight takes turns with the same weight and its
zeros: "of dense time" is the quotient of the two.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conformance import SPARSE, speed_cases
from limits import MachineLimits
from linnet.backends.cpu import _native
from op_counts import Work
from op_runs import Timed, TimedSampling, layers, op_case, sampling

WIDTH = 180
COLUMNS = ("bytes_per_s", "macs_per_s", "read_share", "peak_share", "dense_share")


def measure(
    timed: Timed | TimedSampling, dense: Timed | None, limits: MachineLimits, repeats: int
) -> list[dict[str, Any]]:
    """Probe, case (and the dense one), probe, case ...; all samples are kept. One record for every op that is timed."""
    where = {"case": timed.name, "isa": limits.isa, "threads": limits.threads}
    several = len(timed.ops) > 1
    found: list[dict[str, Any]] = [
        {**where, "op": op.name if several else "", "kernel": op.kernel, **{name: [] for name in COLUMNS}}
        for op in timed.ops
    ]
    for _ in range(repeats):
        read = limits.read()
        peaks = {element: limits.peak(element) for element in {op.work.element for op in timed.ops} if element}
        for record, op, seconds in zip(found, timed.ops, timed.seconds(), strict=True):
            add(record, op.work, seconds, read, peaks)
            if dense is not None:
                record["dense_share"].append(seconds / dense.seconds()[0])
    return found


def add(record: dict[str, Any], work: Work, seconds: float, read: float, peaks: dict[str, float]) -> None:
    """One sample; an op that multiplies nothing worth counting has no multiply-adds."""
    record["bytes_per_s"].append(work.total_bytes / seconds)
    record["read_share"].append(work.total_bytes / seconds / read)
    if work.element is not None:
        record["macs_per_s"].append(work.macs / seconds)
        record["peak_share"].append(work.macs / seconds / peaks[work.element])


def cells(record: dict[str, Any]) -> list[str]:
    """A table's row."""

    def rate(name: str) -> str:
        return f"{statistics.median(record[name]) / 1e9:.1f}" if record[name] else "-"

    def share(name: str) -> str:
        found = record[name]
        return f"{statistics.median(found):.0%} [{min(found):.0%}-{max(found):.0%}]" if found else "-"

    name = f"{record['case']} {record['op']}" if record["op"] else record["case"]
    rates = [rate("bytes_per_s"), share("read_share"), rate("macs_per_s"), share("peak_share"), share("dense_share")]
    return [escape(text) for text in (name, record["kernel"], *rates)]


def everything(limits: MachineLimits, only: str) -> Iterable[tuple[Timed | TimedSampling, Timed | None]]:
    """What is timed, and what in turns with it, each opened when its turn comes; names contain one of the texts of
    ``only``, which commas divide."""
    for text in only.split(","):
        for case in speed_cases():
            if text in case.name:
                sparse = case.scheme.endswith(SPARSE)
                dense = op_case(replace(case, scheme=case.scheme.removesuffix(SPARSE)), limits) if sparse else None
                yield op_case(case, limits), dense
        for make in (layers, sampling):
            yield from ((timed, None) for timed in make(limits, text))


def main() -> None:
    """Measure and print a table; with --json also append one line per op."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", default="", choices=["", *_native.available_isas()])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this text, or one of several: TEXT,TEXT")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    logging.getLogger("linnet").setLevel(logging.ERROR)  # not a word about each file of tiles
    limits = MachineLimits(options.threads, options.isa)
    title = f"{limits.isa}, {limits.threads} threads: median [min-max] of {options.repeats}"
    table = Table(title=escape(title))
    for column in ("case", "kernel"):
        table.add_column(column, no_wrap=True)
    for column in ("GB/s", "of read bandwidth", "GMAC/s", "of peak", "of dense time"):
        table.add_column(column, justify="right", no_wrap=True)
    for timed, dense in everything(limits, options.only):
        for record in measure(timed, dense, limits, options.repeats):
            if options.json:
                with open(options.json, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            table.add_row(*cells(record))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


if __name__ == "__main__":
    main()
