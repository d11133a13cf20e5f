# SPDX-License-Identifier: Apache-2.0
"""What only Linnet is asked: where a decode step goes.

The product has no clocks of its own for this: calls are wrapped from here, the executor's op profile is switched on.
"""

import time
from collections import Counter

from linnet.api import LLM, PreparedPrompt, Sample, SamplingParams, Terms
from linnet.engine import EngineEvent, Tokens

WARM_TOKENS = 8
"""Tokens every sequence decodes before anything is timed."""


def greedy(new: int) -> SamplingParams:
    """Greedy, exactly ``new`` tokens."""
    return SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)


class Clocks:
    """Seconds spent in calls, by name; ``put_back`` undoes the wrapping."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._wrapped: list[tuple[object, str]] = []

    def wrap(self, owner: object, method: str, name: str) -> None:
        """Time every call of ``owner.method`` from now on."""
        original = getattr(owner, method)

        def timed(*arguments, **named):
            started = time.perf_counter()
            try:
                return original(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, method, timed)
        self._wrapped.append((owner, method))

    def put_back(self) -> None:
        """The methods of the classes show again."""
        for owner, method in self._wrapped:
            delattr(owner, method)


def category(kind: str) -> str:
    """Which row of the table an op belongs to; fused kinds are named after what they contain."""
    if "attention" in kind:
        return "attention"
    if any(part in kind for part in ("linear", "logits", "experts")):
        return "matrix kernels"
    return "other ops"


class Sequences:
    """Requests on the engine, stepped from here as ``generate`` and the server step it, tokens counted and timed."""

    def __init__(self, llm: LLM) -> None:
        self._engine, self._llm = llm._engine, llm
        self._samples: dict[int, Sample] = {}
        self.times: dict[int, list[float]] = {}
        """When each sequence's tokens came."""

    def submit(self, prompts: list[list[int]], new: int) -> list[int]:
        """Queue them; returns their ids."""
        ids = []
        for prompt in prompts:
            (sample,) = self._llm.requests.samples([PreparedPrompt(None, tuple(prompt))], greedy(new), Terms())
            self._engine.submit(sample.submit)
            self._samples[sample.submit.request_id] = sample
            self.times[sample.submit.request_id] = []
            ids.append(sample.submit.request_id)
        return ids

    def step(self) -> None:
        """One engine step, its tokens turned into text."""
        for event in self._engine.step():
            self.take(event)

    def take(self, event: EngineEvent) -> None:
        """Detokenise."""
        self._samples[event.request_id].take(event)
        if isinstance(event, Tokens):
            self.times[event.request_id].append(time.perf_counter())

    def step_until(self, tokens: int, ids: list[int]) -> None:
        """Until each of ``ids`` has at least so many tokens."""
        while any(len(self.times[one]) < tokens for one in ids):
            self.step()

    def end(self) -> None:
        """Abort what is unfinished and collect the last events."""
        for one in self.times:
            self._engine.abort(one)
        while self._engine.has_work:
            self.step()


def breakdown(llm: LLM, source, sequences: int, prompt: int, steps: int) -> dict:
    """Where ``steps`` decode steps of ``sequences`` sequences went: seconds by part, and the whole."""
    executable, scheduler, runner = llm.executable, llm._engine.scheduler, llm._engine._runner
    kinds = {op.name: op.kind for op in executable.program.ops}
    running = Sequences(llm)
    ids = running.submit(source.take(prompt, sequences), WARM_TOKENS + steps + 1)
    running.step_until(WARM_TOKENS, ids)
    clocks = Clocks()
    for owner, method, name in (
        (executable, "execute", "execute"),
        (runner._buffers, "fill", "copying"),
        (runner, "collect", "sampling"),
        (scheduler, "schedule", "scheduling"),
        (scheduler, "commit", "scheduling"),
        (running, "take", "detokenising"),
    ):
        clocks.wrap(owner, method, name)
    executable.set_profiling(True)
    try:
        executable.profile()
        started = time.perf_counter()
        for _ in range(steps):
            running.step()
        total = time.perf_counter() - started
        profile = executable.profile()
    finally:
        executable.set_profiling(False)
        clocks.put_back()
        running.end()
    parts: Counter[str] = Counter()
    for name, seconds in profile:
        parts[category(kinds.get(name, ""))] += seconds
    parts["call"] = clocks.seconds.pop("execute") - parts.total()
    return {"steps": steps, "total_s": total, "parts_s": {**parts, **clocks.seconds}}
