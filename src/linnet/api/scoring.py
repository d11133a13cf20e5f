# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given tokens, under one model or two in lockstep."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from linnet.api.generation import Progress
from linnet.api.prompts import token_row
from linnet.engine import Engine, EngineEvent, Finished, PromptScores, SamplingParams, Submit
from linnet.errors import CapacityError, ConfigError, LinnetError
from linnet.scheduler import SchedulerConfig


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row under two models, from position ``start`` on. KL is KL(reference || this), in nats, whole vocabulary."""

    kl: np.ndarray  # float32
    logprobs: np.ndarray  # float32: of the row's own tokens under this model
    reference_logprobs: np.ndarray  # float32
    greedy: np.ndarray  # int32: most likely token under this model
    reference_greedy: np.ndarray  # int32

    @property
    def agree(self) -> np.ndarray:
        """Bool: both models rank the same token first."""
        agree: np.ndarray = np.equal(self.greedy, self.reference_greedy)
        return agree

    @staticmethod
    def of(scores: PromptScores) -> "Comparison":
        """From the scores of an engine in lockstep."""
        kl, theirs, greedy = scores.kl, scores.other_logprobs, scores.other_greedy
        assert kl is not None and theirs is not None and greedy is not None, "the engine ran in lockstep"  # noqa: PT018
        return Comparison(kl, scores.logprobs, theirs, scores.greedy, greedy)


def score_rows(
    engine: Engine,
    ids: Iterator[int],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    progress: Progress | None,
    top_logprobs: int = 0,
    compare: bool = False,
    others: Callable[[EngineEvent], object] = lambda event: None,
) -> list[PromptScores]:
    """Scores in the order of the rows. Everything is validated before anything is computed.

    ``others`` gets the events of requests that are under way besides.

    Entry i of a result is about position ``starts[row] + i`` (default 1, the first token that has a context).
    """
    submits = _submits(engine, ids, rows, starts, SamplingParams(max_tokens=0, prompt_logprobs=top_logprobs), compare)
    results: dict[int, PromptScores] = {}
    waiting, open_ids = deque(submits), set[int]()
    try:
        while waiting or open_ids:
            while waiting and len(open_ids) < engine.config.max_sequences:
                try:
                    engine.submit(waiting[0])
                except CapacityError:
                    if not engine.has_work:
                        raise
                    break  # others hold the queue; this step brings them on
                open_ids.add(waiting.popleft().request_id)
            for event in engine.step():
                if event.request_id not in open_ids:
                    others(event)
                    continue
                if not isinstance(event, Finished):
                    continue
                open_ids.remove(event.request_id)
                if event.prompt_scores is None:
                    raise LinnetError(event.error.message if event.error else f"scoring ended with {event.reason}")
                results[event.request_id] = event.prompt_scores
                if progress is not None:
                    progress(len(results), len(submits))
    finally:
        for request_id in open_ids:
            engine.abort(request_id)
    return [results[submit.request_id] for submit in submits]


def _submits(
    engine: Engine,
    ids: Iterator[int],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    params: SamplingParams,
    compare: bool,
) -> list[Submit]:
    first = [1] * len(rows) if starts is None else [int(start) for start in starts]
    if len(first) != len(rows):
        raise ConfigError(f"{len(first)} starts for {len(rows)} rows; give one for each")
    submits = []
    for index, (given, start) in enumerate(zip(rows, first, strict=True)):
        row = token_row(given)
        if len(row) < 2 or not 1 <= start < len(row):
            raise ConfigError(
                f"row {index} has {len(row)} tokens and start {start}; a row needs two tokens or more and a start from "
                "1 to its last position"
            )
        submit = Submit(
            request_id=next(ids), prompt_token_ids=row, params=params, max_tokens=0, compare=compare, score_start=start
        )
        engine.validate(submit)
        submits.append(submit)
    return submits


def common_config(one: SchedulerConfig, other: SchedulerConfig) -> SchedulerConfig:
    """Settings that both executables were prepared for. Scores need no prefix cache."""
    if one.block_size != other.block_size:
        raise ConfigError(f"block sizes {one.block_size} and {other.block_size} differ; open both models alike")
    sequences = min(one.max_sequences, other.max_sequences)
    return replace(
        one,
        num_blocks=min(one.num_blocks, other.num_blocks),
        max_model_len=min(one.max_model_len, other.max_model_len),
        token_budget=min(one.token_budget, other.token_budget),
        max_sequences=sequences,
        max_output_rows=max(min(one.output_rows, other.output_rows), sequences),
        max_chunk_tokens=None,
        prefix_cache=False,
        preempt_every=None,
    )
