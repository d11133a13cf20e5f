# SPDX-License-Identifier: Apache-2.0
"""Executes a StepPlan: ``launch`` builds the batch and runs the program, ``collect`` samples and scores its rows.

Owns the persistent buffers and the KV states. Order of side effects: launch writes the buffers, then the states of the
first model, then those of the second; collect advances matchers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from linnet.backends.interface import Batch, Executable, Limits, SamplingBatch, check_batch
from linnet.engine.buffers import BatchBuffers
from linnet.engine.live import LiveRequest
from linnet.engine.matcher import mask_words
from linnet.engine.messages import ErrorInfo, error_info
from linnet.engine.sampling import SamplingBatches, SamplingEntry
from linnet.scheduler import StepPlan, StepResult, TokenLogprob, Tokens

NO_DISTRIBUTION = ErrorInfo(
    "no_distribution", "no token could be sampled: the model gave NaN, or the grammar and biases allow no token", 500
)


@dataclass(slots=True)
class StepOutput:
    """What a step gave: one token per sampled request, and the requests that must end with an error."""

    tokens: dict[int, Tokens] = field(default_factory=dict)
    failed: dict[int, ErrorInfo] = field(default_factory=dict)

    @property
    def result(self) -> StepResult:
        """For the scheduler."""
        return StepResult(self.tokens)


class Runner:
    """See the module. ``other`` is a second model that runs in lockstep, for comparisons."""

    def __init__(
        self,
        executable: Executable,
        states: object,
        limits: Limits,
        num_blocks: int,
        vocabulary: int,
        other: tuple[Executable, object] | None = None,
        check: bool = False,
    ) -> None:
        self._executable, self._states, self._other = executable, states, other
        self._limits, self._num_blocks, self._vocabulary = limits, num_blocks, vocabulary
        self._buffers = BatchBuffers(limits)
        self._words = mask_words(vocabulary)
        self._batches = SamplingBatches(self._words)
        self._check = check
        self._launched: tuple[StepPlan, Batch, Mapping[int, LiveRequest]] | None = None

    def close(self) -> None:
        """Let go of the executables and their states."""
        self._executable = self._states = self._other = self._launched = None  # type: ignore[assignment]

    def launch(self, plan: StepPlan, live: Mapping[int, LiveRequest]) -> None:
        """Run the program on the plan's tokens. ``live`` has every request of the plan."""
        batch = self._buffers.fill(plan)
        if self._check:
            check_batch(batch, self._limits, self._num_blocks, self._vocabulary)
        self._executable.execute(batch, self._states)
        if self._other is not None:
            self._other[0].execute(batch, self._other[1])
        self._launched = (plan, batch, live)

    def collect(self) -> StepOutput:
        """Sample and score what ``launch`` computed."""
        assert self._launched is not None, "collect() follows launch()"
        (plan, _, live), self._launched = self._launched, None
        output = StepOutput()
        entries: list[tuple[int, SamplingEntry]] = []
        scored: list[tuple[LiveRequest, int, int, int]] = []  # request, first output row, first target, rows
        row = 0
        for item in plan.items:
            one = live[item.request_id]
            offsets = item.output_offsets
            if one.scores is not None and offsets:
                first = item.start + offsets[0] + 1
                count = min(len(offsets), one.request.prompt_tokens - first)
                if count > 0:
                    scored.append((one, row, first, count))
            row += len(offsets)
            if item.samples:
                entry = self._entry(item.request_id, one, row - 1, output)
                if entry is not None:
                    entries.append((item.request_id, entry))
        self._score(scored)
        self._sample(entries, live, output)
        return output

    def _entry(self, request_id: int, one: LiveRequest, row: int, output: StepOutput) -> SamplingEntry | None:
        allowed = None
        if one.matcher is not None:
            allowed = np.zeros(self._words, np.uint32)
            try:
                one.matcher.fill(allowed)
            except Exception as error:
                output.failed[request_id] = error_info(error)
                return None
        submit, request = one.submit, one.request
        return SamplingEntry(
            row=row,
            params=submit.params,
            seed=submit.seed,
            known=request.known,
            prompt_tokens=request.prompt_tokens,
            stop_token_ids=submit.stop_token_ids,
            allowed=allowed,
        )

    def _sample(
        self, entries: list[tuple[int, SamplingEntry]], live: Mapping[int, LiveRequest], output: StepOutput
    ) -> None:
        if not entries:
            return
        result = self._executable.sample(self._batches.of([entry for _, entry in entries]))
        token_ids, logprobs = result.token_ids.tolist(), result.logprobs.tolist()
        for index, (request_id, entry) in enumerate(entries):
            token_id = token_ids[index]
            if token_id < 0:
                output.failed[request_id] = NO_DISTRIBUTION
                continue
            matcher = live[request_id].matcher
            if matcher is not None:
                try:
                    matcher.accept(token_id)
                except Exception as error:
                    output.failed[request_id] = error_info(error)
                    continue
            told: tuple[TokenLogprob, ...] = ()
            if (top := entry.params.logprobs) is not None:
                ids, values = result.top_ids[index, :top].tolist(), result.top_logprobs[index, :top].tolist()
                told = (TokenLogprob(token_id, logprobs[index], tuple(zip(ids, values, strict=True))),)
            output.tokens[request_id] = Tokens(request_id, (token_id,), told)

    def _score(self, scored: list[tuple[LiveRequest, int, int, int]]) -> None:
        """Score the prompt rows of a step in one call per model; alternatives by a greedy sample of the same rows."""
        if not scored:
            return
        rows = np.concatenate([np.arange(row, row + count, dtype=np.int32) for _, row, _, count in scored])
        targets = np.array(
            [token for one, _, first, count in scored for token in one.submit.prompt_token_ids[first : first + count]],
            np.int32,
        )
        columns: dict[str, np.ndarray] = {}
        compared = self._other is not None and any(one.submit.compare for one, *_ in scored)
        scores = self._executable.score(rows, targets, self._other[0] if compared and self._other else None)
        columns.update(logprobs=scores.logprobs, greedy=scores.greedy, ranks=scores.ranks)
        if compared and self._other is not None and scores.kl is not None and scores.other_greedy is not None:
            theirs = self._other[0].score(rows, targets)
            columns.update(kl=scores.kl, other_greedy=scores.other_greedy, other_logprobs=theirs.logprobs)
        most = max(one.submit.params.prompt_logprobs or 0 for one, *_ in scored)
        tops = None
        if most:
            greedy = SamplingBatch.greedy(rows)
            greedy.top_logprobs = most
            tops = self._executable.sample(greedy)
        start = 0
        for one, _, _, count in scored:
            assert one.scores is not None
            part = slice(start, start + count)
            start += count
            for name, column in columns.items():
                if one.submit.compare or name in ("logprobs", "greedy", "ranks"):
                    one.scores.add(name, column[part])
            wanted = one.submit.params.prompt_logprobs or 0
            if tops is not None and wanted:
                one.scores.add("top_ids", tops.top_ids[part, :wanted])
                one.scores.add("top_logprobs", tops.top_logprobs[part, :wanted])
