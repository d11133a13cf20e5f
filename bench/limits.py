# SPDX-License-Identifier: Apache-2.0
"""What this machine allows: read bandwidth and multiply-add peaks, measured natively (csrc/roofs/limits.cpp).

    python bench/limits.py [--threads N] [--isa NAME] [--repeats 7] [--json]

Every share in bench/ is a quotient of a measurement and one of these taken next to it. Needs no compiler.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from linnet.backends.cpu import _native

T = TypeVar("T")

AREA_BYTES = 512 << 20
PEAK_SECONDS = 0.02


class MachineLimits:
    """Probes on ``threads`` threads; bytes and multiply-adds per second of all threads together."""

    def __init__(self, threads: int | None = None, isa: str = "", area_bytes: int = AREA_BYTES) -> None:
        self.threads = threads or _native.default_threads()
        self.isa = isa or _native.available_isas()[0]
        self.pool = _native.ThreadPool(self.threads)
        self._probe = _native.Limits(self.isa, self.pool, area_bytes)
        self.read()

    def read(self) -> float:
        """Bytes per second, each byte of an area larger than the caches read once: one stream per thread or four,
        whichever is faster (kernels may do either)."""
        return float(max(self._probe.read_bandwidth(streams) for streams in (1, 4)))

    def peak(self, element: str) -> float:
        """Multiply-adds per second of ``int8``, ``bf16`` or ``fp32``; bf16 falls back to fp32 arithmetic."""
        found = float(getattr(self._probe, element)(PEAK_SECONDS))
        return found or float(self._probe.fp32(PEAK_SECONDS))


@dataclass(frozen=True)
class Probe:
    """The limits around a sample."""

    read_bytes_per_s: float
    int8_macs_per_s: float
    drift: float
    """How far apart the probes before and after are, of whichever limit moved more."""

    @staticmethod
    def around(limits: MachineLimits, measure: Callable[[], T]) -> tuple["Probe", T]:
        """Probe, measure, probe: means of the two, and what ``measure`` returned."""
        before, peak_before = limits.read(), limits.peak("int8")
        value = measure()
        after, peak_after = limits.read(), limits.peak("int8")
        drift = max(moved(before, after), moved(peak_before, peak_after))
        return Probe((before + after) / 2, (peak_before + peak_after) / 2, drift), value


def moved(one: float, other: float) -> float:
    """How far apart two probes are, as a share of the smaller."""
    return max(one, other) / min(one, other) - 1


def summary(samples: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}


def main() -> None:
    """Print the limits as a table or as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", default="", choices=["", *_native.available_isas()])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    limits = MachineLimits(options.threads, options.isa)
    samples: dict[str, list[float]] = {"read_bytes": [], "int8_macs": [], "bf16_macs": [], "fp32_macs": []}
    for _ in range(options.repeats):
        samples["read_bytes"].append(limits.read())
        for element in ("int8", "bf16", "fp32"):
            samples[f"{element}_macs"].append(limits.peak(element))
    found: dict[str, Any] = {f"{name}_per_s": summary(values) for name, values in samples.items()}
    if options.json:
        print(json.dumps({"isa": limits.isa, "threads": limits.threads, **found}))
        return
    print(f"{limits.isa}, {limits.threads} threads; median [min - max] of {options.repeats}, in 10^9 per second")
    for name, values in found.items():
        print(f"  {name:18} {values['median'] / 1e9:8.1f} [{values['min'] / 1e9:.1f} - {values['max'] / 1e9:.1f}]")


if __name__ == "__main__":
    main()
