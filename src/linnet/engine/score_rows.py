# SPDX-License-Identifier: Apache-2.0
"""Rows that yield numbers: what `Score` of a plan asks the backend for, under one model or two."""

from dataclasses import dataclass

import numpy as np

from linnet.backends.interface import Executable, SamplingBatch
from linnet.engine.live import LiveRequest
from linnet.scheduler import Score


@dataclass(frozen=True, slots=True)
class _Wanted:
    one: LiveRequest
    row: int
    target_ids: tuple[int, ...]
    compared: bool


class ScoreRows:
    """The rows of one step that are scored: ``want`` each use, then ``read`` them all, in one call per model."""

    def __init__(self) -> None:
        self._wanted: list[_Wanted] = []

    def want(self, one: LiveRequest, use: Score, row: int, compared: bool) -> None:
        """Score the targets at output rows ``row`` ...; ``compared``: under the second model too."""
        self._wanted.append(_Wanted(one, row, use.target_ids, compared))

    def read(self, executable: Executable, other: Executable | None) -> None:
        """Append to each request's scores and forget what was wanted; alternatives by a greedy sample of the rows."""
        wanted, self._wanted = self._wanted, []
        if not wanted:
            return
        rows = np.concatenate([np.arange(use.row, use.row + len(use.target_ids), dtype=np.int32) for use in wanted])
        targets = np.array([token_id for use in wanted for token_id in use.target_ids], np.int32)
        compared = other if any(use.compared for use in wanted) else None
        scores = executable.score(rows, targets, compared)
        columns = {"logprobs": scores.logprobs, "greedy": scores.greedy, "ranks": scores.ranks}
        both: dict[str, np.ndarray] = {}
        if compared is not None and scores.kl is not None and scores.other_greedy is not None:
            theirs = compared.score(rows, targets)
            both = {"kl": scores.kl, "other_greedy": scores.other_greedy, "other_logprobs": theirs.logprobs}
        most = max(use.one.submit.params.prompt_logprobs or 0 for use in wanted)
        tops = None
        if most:
            greedy = SamplingBatch.greedy(rows)
            greedy.top_logprobs = most
            tops = executable.sample(greedy)
        start = 0
        for use in wanted:
            assert use.one.scores is not None, "who is scored has a place for scores"
            part = slice(start, start + len(use.target_ids))
            start = part.stop
            for name, column in (columns | both if use.compared else columns).items():
                use.one.scores.add(name, column[part])
            alternatives = use.one.submit.params.prompt_logprobs or 0
            if tops is not None and alternatives:
                use.one.scores.add("top_ids", tops.top_ids[part, :alternatives])
                use.one.scores.add("top_logprobs", tops.top_logprobs[part, :alternatives])
