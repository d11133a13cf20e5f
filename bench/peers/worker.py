# SPDX-License-Identifier: Apache-2.0
"""One engine in one process, driven by JSON lines, so that two engines can be measured turn by turn in one run.

    python -P bench/peers/worker.py ADAPTER MODEL '{"context_tokens": 2048, "max_sequences": 16, ...}'

Runs in the peer's own environment, so this file imports the standard library only. The first line out reports the first
token (seconds since this process was started, after a prompt of 32 ids). Then one request a line:
{"prompt": 512, "new": 1, "sequences": 1} -> {"first_s": ..., "total_s": ..., "peak_rss_bytes": ...}; an adapter may
offer further measures by name: {"measure": "arrival", ...} -> its own numbers. Whatever libraries print goes to
standard error.
"""

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Run = Callable[[Prompts, int], tuple[float, float]]
"""(prompts, new tokens) -> seconds until every sequence has its first token, seconds until all have all."""

PROMPT_TOKENS_AT_START = 32
LOWEST_ID, IDS = 10, 4000  # ids that every vocabulary measured here has, clear of the special ones


def process_start() -> float:
    """When this process was started, on the clock of time.time(); exact to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


def peak_rss_bytes() -> int:
    """The most memory this program had resident. Not getrusage: its peak survives exec, so it may be the parent's."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class PromptSource:
    """Random ids, new ones for every request, so that no prefix cache can help."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def take(self, tokens: int, sequences: int) -> Prompts:
        """``sequences`` prompts of ``tokens`` ids each."""
        return [[LOWEST_ID + self._random.randrange(IDS) for _ in range(tokens)] for _ in range(sequences)]


def serve(open_model: Callable[[str, dict[str, Any]], Any], model: str, settings: dict[str, Any], answers: Any) -> None:
    """Open, report the first token, then answer until standard input ends."""
    born = process_start()
    source = PromptSource()
    opened = open_model(model, settings)
    run, extras = opened if isinstance(opened, tuple) else (opened, {})

    def answer(record: dict[str, Any]) -> None:
        print(json.dumps({**record, "peak_rss_bytes": peak_rss_bytes()}), file=answers, flush=True)

    run(source.take(PROMPT_TOKENS_AT_START, 1), 1)
    answer({"first_token_s": time.time() - born})
    for line in sys.stdin:
        request = json.loads(line)
        if "measure" in request:
            answer(extras[request.pop("measure")](source, **request))
            continue
        first, total = run(source.take(request["prompt"], request["sequences"]), request["new"])
        answer({"first_s": first, "total_s": total})


def main() -> None:
    """Keep the real standard output for answers, send everything else printed to standard error, serve."""
    adapter, model, settings = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.append(str(Path(__file__).resolve().parent))
    module = importlib.import_module(f"adapters.{adapter}")
    serve(module.open_model, model, json.loads(settings), answers)


if __name__ == "__main__":
    main()
