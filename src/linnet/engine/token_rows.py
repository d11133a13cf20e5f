# SPDX-License-Identifier: Apache-2.0
"""Rows that yield tokens: what `Sample` and `Verify` of a plan ask the backend for, and what becomes of the answer."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from linnet.backends.interface import Executable, SampleResult
from linnet.engine.beams import BeamGroup
from linnet.engine.live import LiveRequest
from linnet.engine.matcher import mask_words
from linnet.engine.matching import Matching
from linnet.engine.messages import ErrorInfo, error_info
from linnet.engine.moving import Moved
from linnet.engine.sampling import SamplingBatches, SamplingEntry
from linnet.scheduler import Sample, StepPlan, StepResult, TokenLogprob, Tokens, Verify

NO_DISTRIBUTION = ErrorInfo(
    "no_distribution", "no token could be sampled: the model gave NaN, or the grammar and biases allow no token", 500
)


@dataclass(slots=True)
class StepOutput:
    """What a step gave: the tokens of each request, the requests that must end with an error, those whose grammar has
    come to its end, those whose search has found its answers, guesses at what comes next, and what its moves took."""

    tokens: dict[int, Tokens] = field(default_factory=dict)
    failed: dict[int, ErrorInfo] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    answered: list[int] = field(default_factory=list)
    guesses: dict[int, tuple[int, ...]] = field(default_factory=dict)
    moved: Moved = field(default_factory=Moved)

    @property
    def result(self) -> StepResult:
        """For the scheduler."""
        return StepResult(self.tokens, *self.moved, frozenset(self.whole))


class TokenRows:
    """The rows of one step that yield tokens: ``foresee`` the step, ``want`` each use, then ``read`` them all."""

    def __init__(self, vocabulary: int) -> None:
        self._words = mask_words(vocabulary)
        self._batches = SamplingBatches(self._words)
        self._wanted: list[tuple[LiveRequest, tuple[int, ...]]] = []
        self._entries: list[SamplingEntry] = []
        self._beside: Executor | None = None

    def close(self) -> None:
        """End the thread of the masks, if there is one."""
        if self._beside is not None:
            self._beside.shutdown(wait=False, cancel_futures=True)
        self._beside = None

    def foresee(self, plan: StepPlan, live: Mapping[int, LiveRequest]) -> None:
        """Begin to fill the masks that the step will ask for, in a thread of their own: kernels hold no lock of
        Python's. Grammars that cannot be asked, now or ever, are left to ``want``."""
        for item in plan.items:
            one = live[item.request_id]
            if one.matching is None:
                continue
            for use in item.uses:
                if isinstance(use, Sample | Verify) and _can_be_asked(one.matching):
                    try:
                        one.matching.begin(_drafts(one, use), self._words, self._thread())
                    except RuntimeError:  # there can be no thread: what waits for it must not run beside ``want``
                        self.close()

    def _thread(self) -> Executor:
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "linnet-masks")
        return self._beside

    def want(self, one: LiveRequest, use: Sample | Verify, row: int, output: StepOutput) -> None:
        """Draw at output rows ``row`` ...; a grammar that fails, or has ended, ends its request in ``output``.

        Nothing is drawn for a request whose grammar is still being made.
        """
        drafts = _drafts(one, use)
        masks: Sequence[np.ndarray | None] = [None] * (1 + len(drafts))
        if one.matching is not None:
            try:
                if not one.matching.ready:
                    return
                masks = one.matching.masks(drafts, self._words)
            except Exception as error:
                output.failed[one.request.request_id] = error_info(error)
                return
            if not masks:
                output.whole.add(one.request.request_id)
                return
            drafts = drafts[: len(masks) - 1]
        known: Sequence[int] = one.request.known
        self._wanted.append((one, drafts))
        self._entries.append(self._entry(one, row, known, masks[0]))
        for index in range(len(drafts)):
            guessed = [*known, *drafts[: index + 1]]
            self._entries.append(self._entry(one, row + index + 1, guessed, masks[index + 1]))

    def read(self, executable: Executable, output: StepOutput) -> None:
        """Sample all wanted rows in one call and forget them. Advances matchers."""
        wanted, entries = self._wanted, self._entries
        self._wanted, self._entries = [], []
        if not entries:
            return
        searching: list[BeamGroup] = []
        result = executable.sample(self._batches.of(entries))
        token_ids, logprobs = result.token_ids.tolist(), result.logprobs.tolist()
        row = 0
        for one, drafts in wanted:
            request_id = one.request.request_id
            drawn = accepted(drafts, token_ids[row : row + 1 + len(drafts)])
            if not drawn:
                output.failed[request_id] = NO_DISTRIBUTION
            elif one.beams is not None:
                one.beams.offer(request_id, *_top(result, row, one.beams.alternatives))
                searching.append(one.beams)
            elif _advance(one, drawn, output):
                told = _told(one, result, drawn, logprobs, row)
                output.tokens[request_id] = Tokens(request_id, drawn, told)
            row += 1 + len(drafts)
        for group in dict.fromkeys(searching):
            _go_on(group, output)

    @staticmethod
    def _entry(one: LiveRequest, row: int, known: Sequence[int], allowed: np.ndarray | None) -> SamplingEntry:
        return SamplingEntry(
            row=row,
            params=one.submit.params,
            seed=one.submit.seed,
            known=known,
            prompt_tokens=one.request.prompt_tokens,
            stop_token_ids=one.submit.stop_token_ids,
            allowed=allowed,
            of_allowed=one.beams is not None and one.matching is not None,
            alternatives=one.beams.alternatives if one.beams is not None else one.submit.params.logprobs,
        )


def _drafts(one: LiveRequest, use: Sample | Verify) -> tuple[int, ...]:
    """The guesses that are looked at; a search draws nothing that could confirm one."""
    return use.draft_token_ids if isinstance(use, Verify) and one.beams is None else ()


def _can_be_asked(matching: Matching) -> bool:
    try:
        return matching.ready
    except Exception:  # ``want`` says what became of it
        return False


def accepted(drafts: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """The tokens that drawing one at a time would have given, of tokens drawn after each guess (one more than drafts).

    A token counts if every guess before it was right. Draws depend on seed and output position alone, so nothing is
    lost or biased at any temperature, unlike the rejection of Leviathan et al., Fast Inference from Transformers via
    Speculative Decoding, 2023, which keeps the distribution only. A row without a distribution (-1) ends the run.
    """
    tokens: list[int] = []
    for index, token_id in enumerate(drawn):
        if token_id < 0:
            break
        tokens.append(token_id)
        if index < len(drafts) and drafts[index] != token_id:
            break
    return tuple(tokens)


def _advance(one: LiveRequest, token_ids: Sequence[int], output: StepOutput) -> bool:
    """Tell the grammar of a request what was drawn for it; False where that is its end, with an error."""
    if one.matching is None:
        return True
    request_id = one.request.request_id
    try:
        if one.matching.accept(token_ids):
            output.whole.add(request_id)
        elif guess := one.matching.forced():
            output.guesses[request_id] = guess
    except Exception as error:
        output.failed[request_id] = error_info(error)
        return False
    return True


def _go_on(group: BeamGroup, output: StepOutput) -> None:
    """The next tokens of a search, or its end; one that raises is the end of that search alone."""
    try:
        output.tokens |= group.choose()
    except Exception as error:
        output.failed |= dict.fromkeys(group.request_ids, error_info(error))
        return
    if group.ended:
        output.answered += group.request_ids


def _told(
    one: LiveRequest, result: SampleResult, token_ids: Sequence[int], logprobs: Sequence[float], row: int
) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of tokens drawn at the result's rows from ``row`` on, if they were asked for."""
    top = one.submit.params.logprobs
    if top is None:
        return ()
    told = []
    for index, token_id in enumerate(token_ids, row):
        told.append(TokenLogprob(token_id, logprobs[index], tuple(zip(*_top(result, index, top), strict=True))))
    return tuple(told)


def _top(result: SampleResult, row: int, count: int) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of the likeliest tokens of a row."""
    return result.top_ids[row, :count].tolist(), result.top_logprobs[row, :count].tolist()
