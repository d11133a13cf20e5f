# SPDX-License-Identifier: Apache-2.0
"""A real engine as the world of a replay: requests come when the clock says so, and every step's seconds are noted.

    python bench/trace_engine.py MODEL --name NAME [--prices FILE] [--requests 300] [--context 1024] [--sequences 64]

measures the steps of a mixture of requests, fits prices to them (step_prices.py) and keeps these under the name.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import log2
from pathlib import Path
from random import Random

from foreign import ForeignLoad
from lines import note
from linnet.api import LLM
from linnet.engine import SamplingParams, Submit, Tokens
from linnet.scheduler import Event, Scheduler, SchedulerConfig, StepPlan, StepResult
from step_prices import PRICES, Prices, Sample, amounts_of, fit
from virtual import Asked, Gate, Replay, replay


class WatchedScheduler(Scheduler):
    """Tells of each plan when it is committed."""

    def __init__(self, config: SchedulerConfig, done: Callable[[StepPlan], None]) -> None:
        super().__init__(config)
        self._done = done

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> tuple[Event, ...]:
        """As the scheduler's."""
        events = super().commit(plan, result, now)
        self._done(plan)
        return events


class EngineWorld:
    """See tests/sim/replay.py: World. The clock starts when the first request is asked for."""

    def __init__(self, llm: LLM, config: SchedulerConfig, asked: Sequence[Asked]) -> None:
        """`config`: the scheduler's, of the engine's own sizes; its policy and seats may be others."""
        self._engine = llm._engine
        self._plans: list[StepPlan] = []
        self.scheduler: Scheduler = WatchedScheduler(config, self._plans.append)
        self._engine.scheduler = self.scheduler
        self.on_step: Callable[[StepPlan], None] = lambda plan: None
        self.samples: list[Sample] = []
        vocabulary = self._engine.facts.vocabulary_size
        self._all_ids = frozenset(range(vocabulary))
        self._submits = [_submit(request_id, one, vocabulary) for request_id, one in enumerate(asked)]
        self._left = [one.new_tokens for one in asked]
        self._asked = asked
        self._origin_s = self._engine.clock()
        self._free_s = 0.0

    def now(self) -> float:
        """See World."""
        return self._engine.clock() - self._origin_s

    def wait(self, until_s: float) -> None:
        """Sleeps."""
        time.sleep(max(until_s - self.now(), 0.0))
        self._free_s = self.now()

    def submit(self, request_id: int, asked: Asked) -> None:
        """See World."""
        self._engine.submit(self._submits[request_id], self._origin_s + asked.arrival_s)
        self._end_if_next(request_id)

    def step(self) -> list[Tokens]:
        """One step of the engine. What it took is counted from the end of the last one: that is the engine's pace."""
        events = [event for event in self._engine.step() if isinstance(event, Tokens)]
        for event in events:
            self._left[event.request_id] -= len(event.token_ids)
            self._end_if_next(event.request_id)
        now = self.now()
        for plan in self._plans:
            self.samples.append((amounts_of(plan), now - self._free_s))
            self.on_step(plan)
        self._plans.clear()
        self._free_s = now
        return events

    def _end_if_next(self, request_id: int) -> None:
        """Answers end where the trace says: before the last token, every token becomes a stop token."""
        if self._left[request_id] == 1 and (live := self._engine._live.get(request_id)) is not None:
            live.request.stop_token_ids = self._all_ids


def _submit(request_id: int, asked: Asked, vocabulary: int) -> Submit:
    params = SamplingParams(temperature=0.0, max_tokens=asked.limit, ignore_eos=True)
    return Submit(
        request_id=request_id,
        prompt_token_ids=asked.prompt(request_id, vocabulary),
        params=params,
        max_tokens=asked.limit,
        tenant=asked.tenant,
    )


MEASURED_REQUESTS = 120
"""For prices just before a replay; a few seconds with a small model."""
BUDGETS = (24, 96, 512)
"""Tokens of a step at most while prices are measured: prompts come in pieces of all sizes."""


def mixture(count: int, longest_tokens: int, seed: int = 0) -> list[Asked]:
    """Requests of all lengths, alone, few and many at once: what prices are fitted to. Bursts with pauses between."""
    random = Random(seed)
    asked, now = [], 0.0
    while len(asked) < count:
        for _ in range(random.choice((1, 2, 4, 8, 16))):
            prompt = int(2 ** random.uniform(2, log2(longest_tokens / 2)))
            new = int(2 ** random.uniform(0, 7))
            asked.append(Asked(now, prompt, min(new, longest_tokens - prompt)))
        now += random.expovariate(5.0)
    return asked[:count]


def measured(name: str, llm: LLM, requests: int, longest_tokens: int) -> Prices:
    """Prices of the engine's steps."""
    samples: list[Sample] = []
    for seed, budget in enumerate((BUDGETS[-1], *BUDGETS)):
        asked = mixture(requests // len(BUDGETS), longest_tokens, seed)
        world = EngineWorld(llm, replace(llm._engine.facts.scheduling, token_budget=budget), asked)
        replay(world, asked)
        samples = samples + world.samples if seed else []  # the first round warms everything up
    return fit(name, samples)


def opened(directory: Path, context_tokens: int, num_blocks: int, sequences: int, token_budget: int) -> LLM:
    """The model with an engine of this size; nothing is found in its prefix cache but what a trace shares."""
    return LLM(
        directory,
        max_model_len=context_tokens,
        num_blocks=num_blocks,
        max_sequences=sequences,
        max_waiting_requests=100_000,
        token_budget=token_budget,
    )


def opened_as(directory: Path, config: SchedulerConfig) -> LLM:
    """The model with an engine as large as `config` says."""
    size = config.max_model_len, config.num_blocks, config.max_sequences, config.token_budget
    return opened(directory, *size)


def really(
    directory: Path, config: SchedulerConfig, asked: Sequence[Asked], gate: Gate | None = None
) -> tuple[Replay, Prices, Prices, float]:
    """Replays on a fresh engine that is as large as `config` says, and orders requests as it says.

    Returns with it the prices of the engine's steps just before, those of the replay's own steps, and how many cores
    others used meanwhile.
    """
    with opened_as(directory, config) as llm:
        ordered = replace(
            llm._engine.facts.scheduling,
            policy=config.policy,
            ageing_s=config.ageing_s,
            predict_length=config.predict_length,
            step_budget_s=config.step_budget_s,
        )
        before = measured("before", llm, MEASURED_REQUESTS, config.max_model_len)
        world = EngineWorld(llm, ordered, asked)
        load = ForeignLoad()
        found = replay(world, asked, gate)
        cores = load.cores()
    return found, before, fit("own", world.samples), cores


def main() -> None:
    """Measure steps, fit, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", required=True, help="what the prices are called in the file")
    parser.add_argument("--prices", type=Path, default=PRICES)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=64)
    options = parser.parse_args()
    blocks = options.sequences * options.context // 16
    with opened(options.directory, options.context, blocks, options.sequences, 512) as llm:
        prices = measured(options.name, llm, options.requests, options.context)
    prices.save(options.prices)
    note(asdict(prices), None)


if __name__ == "__main__":
    main()
