# SPDX-License-Identifier: Apache-2.0
"""What is left of the speed when another process takes one of the cores.

    python bench/neighbour.py DIR [--rounds 3] [--threads N] [--new-session] [--json FILE]

The neighbour is a process at the same priority that computes all the time: pinned to the last core, or left to the
operating system. In turns without it, with it pinned and with it floating: decoding 48 tokens after 32, and a prompt of
512. Prints medians with their range, the share that is kept, and how much of a core the neighbour got. With
--new-session the neighbour is scheduled as a group of its own (Linux's autogroup, as a container would be).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lines import note
from linnet.api import LLM, SamplingParams

MODES = ("alone", "pinned", "floating")
PREFILL, DECODE = 512, 48
SETTLE_S = 0.1


class Neighbour:
    """A process that computes until it is ended; ``pinned`` to the last core this process may use."""

    def __init__(self, pinned: bool, new_session: bool) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=new_session)
        if pinned:
            os.sched_setaffinity(self._process.pid, {max(os.sched_getaffinity(0))})
        time.sleep(SETTLE_S)
        self._began, self._cpu = time.perf_counter(), self._cpu_s()

    def end(self) -> float:
        """End it; returns the cores it got."""
        cores = (self._cpu_s() - self._cpu) / (time.perf_counter() - self._began)
        self._process.kill()
        self._process.wait()
        return cores

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def speeds(llm: LLM) -> dict[str, float]:
    """Tokens per second of one answer and of one prompt."""
    short = [10 + (31 * index) % 4000 for index in range(32)]
    long = [10 + (37 * index) % 4000 for index in range(PREFILL)]
    times = []
    for _ in llm.stream(short, SamplingParams(temperature=0.0, max_tokens=DECODE + 1, ignore_eos=True)):
        times.append(time.perf_counter())
    started = time.perf_counter()
    llm.generate([long], SamplingParams(temperature=0.0, max_tokens=1))
    prefill_s = time.perf_counter() - started
    return {"decode": (len(times) - 1) / (times[-1] - times[0]), "prefill": PREFILL / prefill_s}


def main() -> None:
    """Measure in turns; print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--new-session", action="store_true")
    parser.add_argument("--json", type=Path, help="append the line to this file")
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    with LLM(options.directory, max_model_len=1024, num_blocks=256, prefix_cache=False, threads=options.threads) as llm:
        speeds(llm)
        for _ in range(options.rounds):
            for mode in MODES:
                neighbour = None if mode == "alone" else Neighbour(mode == "pinned", options.new_session)
                for name, value in speeds(llm).items():
                    samples.setdefault(f"{mode}_{name}", []).append(value)
                if neighbour is not None:
                    samples.setdefault(f"{mode}_neighbour_cores", []).append(neighbour.end())
    found: dict[str, float] = {}
    for name, values in samples.items():
        found[name] = statistics.median(values)
        print(f"{name:26} {found[name]:8.2f}  [{min(values):.2f} - {max(values):.2f}]")
    for mode in MODES[1:]:
        for name in ("decode", "prefill"):
            found[f"{mode}_{name}_kept"] = found[f"{mode}_{name}"] / found[f"alone_{name}"]
            print(f"{mode}_{name}_kept".ljust(26), f"{found[f'{mode}_{name}_kept']:8.2%}")
    note(found, options.json)


if __name__ == "__main__":
    main()
