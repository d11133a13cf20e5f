# SPDX-License-Identifier: Apache-2.0
"""Every linear OpCase's speed as a share of what the machine allows, limits and case measured in turns.

    python bench/ops.py [--threads N] [--isa NAME] [--repeats 7] [--only TEXT] [--json FILE]

GB/s counts codes and scales as stored, each read once per call; enough copies of the weight are cycled that none stays
in cache. A share is the median of quotients with the probe taken just before; the range shows how much to believe.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limits import MachineLimits
from linnet.backends.cases import CaseSource, OpCase, speed_cases
from linnet.backends.cpu import _native
from linnet.backends.cpu.weights import WeightTable
from linnet.program.choose_numerics import activation_scheme
from linnet.program.program import WeightRef
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import Scheme

CACHE_BYTES = 128 << 20
LEAST_SECONDS = 0.02


class _Copy(CaseSource):
    """The same weights elsewhere in memory."""

    def __init__(self, original: CaseSource) -> None:
        super().__init__(original.case)
        self._original = original

    def weight(self, ref: WeightRef) -> np.ndarray | PackedWeight:
        stored = self._original.weight(ref)
        if isinstance(stored, PackedWeight):
            return replace(stored, arrays={name: array.copy() for name, array in stored.arrays.items()})
        return stored.copy()


class TimedCase:
    """A linear case with as many copies of its weight as it takes to leave the caches."""

    def __init__(self, case: OpCase, limits: MachineLimits) -> None:
        self.case = case
        source = CaseSource(case)
        refs = {weight.name: weight.ref for weight in source.program.weights}
        weight = next(weight for weight in source.program.weights if weight.name == "weight")
        stored = source.weight(weight.ref)
        self.weight_bytes = stored.nbytes
        self.element, input_type, group_size = self._input(activation_scheme(weight, case.policy), case.columns)
        x = np.ascontiguousarray(source.weight(refs["table.x"]))
        self._alive, self._runs = [], []
        for _ in range(max(1, -(-CACHE_BYTES // self.weight_bytes))):
            table = WeightTable(source.program, _Copy(source))
            linear = table.linear("weight", "bias")
            self.kernel = _native.linear_name(limits.isa, linear, input_type)
            self._runs.append(_native.LinearRun(limits.isa, limits.pool, linear, input_type, group_size, x))
            self._alive.append(table)
        self._y = np.empty((case.rows, case.outputs), np.float32)
        self.seconds()

    @staticmethod
    def _input(wanted: object, columns: int) -> tuple[str, Any, int]:
        if isinstance(wanted, Scheme):
            return "int8", _native.InputType.int8, wanted.group_size or columns
        if wanted == "bf16":
            return "bf16", _native.InputType.bf16, columns
        return "fp32", _native.InputType.fp32, columns

    def seconds(self) -> float:
        """Of one call, over whole rounds through the copies."""
        calls, start = 0, time.perf_counter()
        while True:
            for run in self._runs:
                run.run(self._y, 0, self.case.rows, 8)
                calls += 1
                spent = time.perf_counter() - start
                if spent > LEAST_SECONDS and calls >= min(len(self._runs), 4):
                    return spent / calls


def measure(case: OpCase, limits: MachineLimits, repeats: int) -> dict[str, Any]:
    """Probe, case, probe, case ...; all samples are kept."""
    timed = TimedCase(case, limits)
    macs = case.rows * case.columns * case.outputs
    rows: dict[str, list[float]] = {name: [] for name in ("bytes_per_s", "macs_per_s", "read_share", "peak_share")}
    for _ in range(repeats):
        read, peak = limits.read(), limits.peak(timed.element)
        seconds = timed.seconds()
        rows["bytes_per_s"].append(timed.weight_bytes / seconds)
        rows["macs_per_s"].append(macs / seconds)
        rows["read_share"].append(timed.weight_bytes / seconds / read)
        rows["peak_share"].append(macs / seconds / peak)
    return {"case": case.name, "kernel": timed.kernel, "isa": limits.isa, "threads": limits.threads, **rows}


def main() -> None:
    """Measure and print a table; with --json also append one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", default="", choices=["", *_native.available_isas()])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    limits = MachineLimits(options.threads, options.isa)
    title = f"{limits.isa}, {limits.threads} threads: median [min-max] of {options.repeats}"
    table = Table(title=escape(title))
    for column in ("case", "kernel"):
        table.add_column(column, no_wrap=True)
    for column in ("GB/s", "of read bandwidth", "GMAC/s", "of peak"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in speed_cases():
        if case.kind != "linear" or options.only not in case.name:
            continue
        found = measure(case, limits, options.repeats)
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        shares = {
            name: f"{statistics.median(found[name]):.0%} [{min(found[name]):.0%}-{max(found[name]):.0%}]"
            for name in ("read_share", "peak_share")
        }
        table.add_row(
            case.name,
            found["kernel"],
            f"{statistics.median(found['bytes_per_s']) / 1e9:.1f}",
            escape(shares["read_share"]),
            f"{statistics.median(found['macs_per_s']) / 1e9:.1f}",
            escape(shares["peak_share"]),
        )
    console = Console()
    console.width = max(console.width, 130)
    console.print(table)


if __name__ == "__main__":
    main()
