# SPDX-License-Identifier: Apache-2.0
"""Random requests, and running them on an engine step by step; results keep every bit that a user could see."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from linnet.engine import Engine, Finished, SamplingParams, Submit, Tokens


@dataclass
class Result:
    """What came back for one request. Log-probabilities are kept as bytes, so that equality is equality of bits."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[bytes, tuple[tuple[int, bytes], ...]]] = field(default_factory=list)
    scores: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""
    error: str | None = None

    def take(self, event: Tokens | Finished) -> None:
        assert not self.reason, "an event after Finished"
        if isinstance(event, Tokens):
            assert len(event.logprobs) in (0, len(event.token_ids))
            self.token_ids += event.token_ids
            self.logprobs += [
                (bits(entry.logprob), tuple((token_id, bits(value)) for token_id, value in entry.top))
                for entry in event.logprobs
            ]
            return
        self.reason, self.error = event.reason, event.error.message if event.error else None
        if event.prompt_scores is not None:
            for name in ("logprobs", "greedy", "ranks", "top_ids", "top_logprobs"):
                array = getattr(event.prompt_scores, name)
                if array is not None:
                    self.scores[name] = array.tobytes()


def bits(value: float) -> bytes:
    return np.float32(value).tobytes()


def run(
    engine: Engine,
    submits: Sequence[Submit],
    *,
    arrivals: Sequence[int] | None = None,
    between: Callable[[int], Iterable[int]] = lambda step: (),
    most_steps: int = 20_000,
) -> dict[int, Result]:
    """Submit request i before step ``arrivals[i]``; ``between(step)`` names requests to abort before that step."""
    results = {submit.request_id: Result() for submit in submits}
    due = sorted(zip(arrivals or [0] * len(submits), range(len(submits)), strict=True))
    step = 0
    while due or engine.has_work:
        while due and due[0][0] <= step:
            engine.submit(submits[due.pop(0)[1]])
        for request_id in between(step):
            engine.abort(request_id)
        for event in engine.step():
            results[event.request_id].take(event)
        step += 1
        assert step < most_steps, "the engine does not come to an end"
    engine.scheduler.check()
    assert engine.counters().used_blocks == 0, "blocks were lost"
    assert not engine.unfinished
    return results


def random_params(rng: random.Random, vocabulary: int) -> SamplingParams:
    """Every sampling feature, each with some probability."""

    def sometimes(value: object, other: object) -> object:
        return value if rng.random() < 0.35 else other

    bias = {rng.randrange(vocabulary): rng.uniform(-5, 5) for _ in range(rng.randrange(4))}
    return SamplingParams(
        min_tokens=int(sometimes(3, 0)),  # type: ignore[call-overload]
        max_tokens=64,
        temperature=float(sometimes(0.0, rng.choice([0.5, 1.0, 1.7]))),  # type: ignore[arg-type]
        top_k=int(sometimes(rng.randrange(1, 20), 0)),  # type: ignore[call-overload]
        top_p=float(sometimes(rng.uniform(0.3, 1.0), 1.0)),  # type: ignore[arg-type]
        min_p=float(sometimes(rng.uniform(0.0, 0.3), 0.0)),  # type: ignore[arg-type]
        repetition_penalty=float(sometimes(rng.uniform(0.7, 1.6), 1.0)),  # type: ignore[arg-type]
        presence_penalty=float(sometimes(rng.uniform(-1, 1), 0.0)),  # type: ignore[arg-type]
        frequency_penalty=float(sometimes(rng.uniform(-1, 1), 0.0)),  # type: ignore[arg-type]
        logit_bias=bias if rng.random() < 0.3 else {},
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([None, None, None, 0, 2]),
    )


def random_submits(rng: random.Random, vocabulary: int, count: int, longest: int, first_id: int = 0) -> list[Submit]:
    """Requests of which many share prefixes; ``longest`` bounds prompt plus new tokens."""
    shared = [[rng.randrange(vocabulary) for _ in range(longest)] for _ in range(2)]
    submits = []
    for index in range(count):
        new_tokens = rng.randrange(1, 12)
        size = rng.randrange(1, longest - new_tokens)
        prompt = list(rng.choice(shared)[:size]) if rng.random() < 0.7 else []
        cut = rng.randrange(size) if rng.random() < 0.5 else size
        prompt = prompt[:cut] + [rng.randrange(vocabulary) for _ in range(size - len(prompt[:cut]))]
        params = random_params(rng, vocabulary)
        submits.append(
            Submit(
                request_id=first_id + index,
                prompt_token_ids=tuple(prompt),
                params=params,
                max_tokens=new_tokens,
                stop_token_ids=frozenset(rng.sample(range(vocabulary), 3)) if rng.random() < 0.3 else frozenset(),
                seed=rng.getrandbits(64),
                score_start=rng.randrange(1, size + 1) if rng.random() < 0.3 else 1,
            )
        )
    return submits


def renamed(submit: Submit, request_id: int) -> Submit:
    """The same request under another id; a fork moves with its origin."""
    fork_of = None if submit.fork_of is None else submit.fork_of + request_id - submit.request_id
    return replace(submit, request_id=request_id, fork_of=fork_of)
