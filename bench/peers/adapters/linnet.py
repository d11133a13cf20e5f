# SPDX-License-Identifier: Apache-2.0
"""Linnet as ``linnet serve`` opens it: every default, the prefix cache on (prompts never repeat)."""

import time
from pathlib import Path

from adapters import linnet_measures
from linnet.api import LLM

STEP_BUDGET_S = 0.1
"""serve's default; the library itself has none."""


def open_model(path, settings):
    """Nothing in ``settings`` is needed: the engine sizes itself."""
    llm = LLM(Path(path), step_budget_s=STEP_BUDGET_S, large_pages=True)

    def run(prompts, new):
        parameters = linnet_measures.greedy(new)
        started = time.perf_counter()
        if len(prompts) > 1:
            llm.generate(prompts, parameters)
            return float("nan"), time.perf_counter() - started
        first = None
        for _ in llm.stream(prompts[0], parameters):
            first = first or time.perf_counter()
        return first - started, time.perf_counter() - started

    return run, {"breakdown": lambda source, **request: linnet_measures.breakdown(llm, source, **request)}
