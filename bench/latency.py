# SPDX-License-Identifier: Apache-2.0
"""What those who are decoding feel when a long prompt arrives: the gaps between their tokens, and what the prompt pays.

    python bench/latency.py DIR [--prompt 8192] [--sequences 8] [--step-budget 0.1] [--rounds 1] [--json FILE]

One process, one engine, as `linnet serve` runs it. A round: the prompt alone (the speed to be kept); then the
sequences decode, the prompt arrives, and every gap between two tokens of a sequence is noted until the prompt's first
token. Prints the gaps without the prompt, with it, and the share of the prompt's speed that is kept.
"""

import argparse
import itertools
import time
from pathlib import Path

from lines import note
from linnet.api import LLM
from linnet.engine import SamplingParams, Submit, Tokens

WARM_STEPS = 24


class Clients:
    """Requests to one engine, and when each got its tokens."""

    def __init__(self, llm: LLM) -> None:
        self._engine = llm._engine
        self._ids = 0
        self.times_s: dict[int, list[float]] = {}

    def ask(self, prompt_tokens: int, new_tokens: int) -> int:
        """A prompt that shares no prefix with any other; returns its id."""
        self._ids += 1
        prompt = tuple(10 + (7919 * self._ids + 31 * index) % 4000 for index in range(prompt_tokens))
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        self._engine.submit(Submit(request_id=self._ids, prompt_token_ids=prompt, params=params, max_tokens=new_tokens))
        self.times_s[self._ids] = []
        return self._ids

    def step(self) -> None:
        """One step; its tokens came now."""
        events = self._engine.step()
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Tokens):
                self.times_s[event.request_id].append(now)

    def first_token_s(self, request_id: int) -> float:
        """Steps until the request has a token; seconds from now."""
        started = time.perf_counter()
        while not self.times_s[request_id]:
            self.step()
        return time.perf_counter() - started

    def end(self) -> None:
        """Abort everything."""
        for request_id in self._engine.unfinished:
            self._engine.abort(request_id)
        while self._engine.has_work:
            self._engine.step()


def gaps_s(times_s: list[float], begin: float, end: float) -> list[float]:
    """Gaps that end in (begin, end]."""
    return [after - before for before, after in itertools.pairwise(times_s) if begin < after <= end]


def quantile(samples: list[float], share: float) -> float:
    """The smallest sample that `share` of them do not exceed."""
    return sorted(samples)[min(int(share * len(samples)), len(samples) - 1)]


def measure(llm: LLM, prompt: int, sequences: int) -> dict[str, float]:
    """One round."""
    clients = Clients(llm)
    alone_s = clients.first_token_s(clients.ask(prompt, 1))
    clients.end()
    decoding = [clients.ask(32, 4000) for _ in range(sequences)]
    for request_id in decoding:
        clients.first_token_s(request_id)
    before = time.perf_counter()
    for _ in range(WARM_STEPS):
        clients.step()
    arrived = time.perf_counter()
    shared_s = clients.first_token_s(clients.ask(prompt, 1))
    done = time.perf_counter()
    calm = [gap for one in decoding for gap in gaps_s(clients.times_s[one], before, arrived)]
    gaps = [gap for one in decoding for gap in gaps_s(clients.times_s[one], arrived, done)]
    clients.end()
    return {
        "prefill_alone_tokens_per_s": prompt / alone_s,
        "prefill_kept": alone_s / shared_s,
        "calm_gap_ms": 1e3 * quantile(calm, 0.5),
        "median_gap_ms": 1e3 * quantile(gaps, 0.5),
        "p99_gap_ms": 1e3 * quantile(gaps, 0.99),
        "longest_gap_ms": 1e3 * max(gaps),
        "gaps": len(gaps),
    }


def main() -> None:
    """Measure and print one JSON line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--step-budget", type=float, default=0.1, help="seconds; 0: the token budget only")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    options = parser.parse_args()
    context = max(options.prompt, 4096) + 64
    blocks = (context + options.sequences * 4096) // 16 + options.sequences
    with LLM(
        options.directory,
        max_model_len=context,
        num_blocks=blocks,
        max_sequences=options.sequences + 1,
        prefix_cache=False,
        step_budget_s=options.step_budget or None,
    ) as llm:
        for _ in range(options.rounds):
            found = {"step_budget_ms": 1e3 * options.step_budget, "prompt_tokens": options.prompt}
            note(found | measure(llm, options.prompt, options.sequences), options.json)


if __name__ == "__main__":
    main()
