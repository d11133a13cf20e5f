# SPDX-License-Identifier: Apache-2.0
"""Company on the machine: one core taken by somebody else, and a long prompt arriving among sequences that decode."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from measures import Values, decode, prefill
from process import EngineProcess

BENCH = Path(__file__).resolve().parents[1]


NOISY_TOKENS = 48
"""Fewer than elsewhere: engines whose threads spin at barriers fall to a few tokens a second."""


class Neighbour:
    """A process that keeps one core busy while the context lasts; a child of this one, so not foreign load."""

    def __enter__(self) -> "Neighbour":
        core = min(os.sched_getaffinity(0))
        code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
        self._process = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(0.2)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    @staticmethod
    def kept(engine: EngineProcess) -> Values:
        """What is left of decode and prefill, each beside its own quiet measurement."""
        quiet = decode(engine, NOISY_TOKENS) | prefill(engine)
        with Neighbour():
            busy = decode(engine, NOISY_TOKENS) | prefill(engine)
        return {
            f"noisy_{name}_kept": busy[f"{name}_tokens_per_s"] / quiet[f"{name}_tokens_per_s"]
            for name in ("decode", "prefill")
        }


def arrival(model: Path) -> Values:
    """bench/latency.py: gaps between the tokens of eight sequences while a prompt of 8,192 is read, its speed kept."""
    command = [sys.executable, str(BENCH / "latency.py"), str(model)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {f"arrival_{name}": float(value) for name, value in found.items()}
