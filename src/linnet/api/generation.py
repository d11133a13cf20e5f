# SPDX-License-Identifier: Apache-2.0
"""Runs samples on an engine in the caller's thread and hands every event to the sample it belongs to.

Several calls may be under way at once (a stream that is read while ``generate`` runs): whoever steps the engine serves
them all.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linnet.api.output import Piece, RequestOutput, SampleStream
from linnet.api.prompts import PreparedPrompt
from linnet.engine import Abort, Engine, EngineEvent, Submit, Tokens
from linnet.errors import CapacityError, LinnetError

Progress = Callable[[int, int], None]
"""(done, total) in prompts or rows; called after each one. May raise to cancel."""

TokensDone = Callable[[int], object]
"""Called after every step with the tokens generated so far, over all prompts of the call. May raise to cancel."""


@dataclass(eq=False, slots=True)
class Sample:
    """One engine request: its message, its text so far, and which of the call's prompts it belongs to."""

    submit: Submit
    stream: SampleStream
    prompt_index: int = 0
    done: bool = False

    @property
    def index(self) -> int:
        """Of the sample among those of its call; its pieces carry it."""
        return self.stream.index

    def read(self, event: EngineEvent) -> Piece:
        """What became certain with an event of this request."""
        return self.stream.feed(event) if isinstance(event, Tokens) else self.stream.finish(event)

    def take(self, event: EngineEvent) -> Piece:
        """The same, and ``done`` when it was the last."""
        piece = self.read(event)
        self.done = not isinstance(event, Tokens)
        return piece

    def raise_error(self) -> None:
        """Raise what the engine said went wrong with this request."""
        if self.stream.error is not None:
            raise LinnetError(self.stream.error.message)


class Dispatcher:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, tuple[Sample, deque[Piece]]] = {}  # with where its pieces go

    def run(
        self, requests: Sequence[Sequence[Sample]], progress: Progress | None, tokens_done: TokensDone | None = None
    ) -> None:
        """Compute all samples of all requests; ``progress`` counts requests, ``tokens_done`` tokens.

        LinnetError as soon as the engine ends one with an error; the others are abandoned.
        """
        samples = [sample for group in requests for sample in group]
        request_of = {id(sample): index for index, group in enumerate(requests) for sample in group}
        left = [len(group) for group in requests]
        waiting = deque(samples)
        unread: deque[Piece] = deque(maxlen=0)  # the samples keep their text
        done = 0
        try:
            while waiting or any(map(self._is_open, samples)):
                self._send(waiting, unread)
                for sample in self._step():
                    index = request_of.get(id(sample))
                    if index is None:
                        continue  # of another call that streams meanwhile
                    sample.raise_error()
                    left[index] -= 1
                    if left[index] == 0:
                        done += 1
                        if progress is not None:
                            progress(done, len(requests))
                if tokens_done is not None:
                    tokens_done(sum(len(sample.stream.token_ids) for sample in samples))
        finally:
            self._abandon(samples)

    def stream(self, samples: Sequence[Sample], cancelled: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """Pieces of these samples as they come; closing the iterator aborts them, and so does ``cancelled`` (asked
        between two steps)."""
        waiting = deque(samples)
        pieces: deque[Piece] = deque()
        try:
            while (waiting or pieces or any(map(self._is_open, samples))) and not cancelled():
                self._send(waiting, pieces)
                if not pieces:
                    self._step()
                while pieces:
                    yield pieces.popleft()
                for sample in samples:
                    sample.raise_error()
        finally:
            self._abandon(samples)

    def _is_open(self, sample: Sample) -> bool:
        return sample.submit.request_id in self._open

    def _send(self, waiting: deque[Sample], pieces: deque[Piece]) -> None:
        """Submit what the queue takes, keeping it short; the rest follows as others finish."""
        limits = self._engine.facts.scheduling
        most = limits.max_sequences + min(limits.max_waiting_requests, limits.max_sequences)
        while waiting and (not self._open or len(self._open) + _together(waiting[0].submit) <= most):
            sample = waiting[0]
            try:
                self._engine.handle(sample.submit)
            except CapacityError:
                if not self._open:
                    raise
                return
            waiting.popleft()
            self._open[sample.submit.request_id] = sample, pieces

    def _step(self) -> list[Sample]:
        """One engine step; returns the samples that finished in it."""
        ended = map(self._take, self._engine.step())
        return [sample for sample in ended if sample is not None]

    def _take(self, event: EngineEvent) -> Sample | None:
        """Hand an event to its sample, whoever stepped the engine; returns the sample if it ends with it."""
        sample, pieces = self._open.get(event.request_id, (None, None))
        if sample is None or pieces is None:
            return None
        pieces.append(sample.take(event))
        if sample.done:
            del self._open[event.request_id]
            return sample
        if sample.stream.stopped:
            self._engine.handle(Abort(event.request_id))
        return None

    def _abandon(self, samples: Sequence[Sample]) -> None:
        """End what is still open: an error, a cancelled progress, a closed stream. Blocks return at once."""
        for sample in samples:
            if self._open.pop(sample.submit.request_id, None) is not None:
                self._engine.handle(Abort(sample.submit.request_id))


def _together(submit: Submit) -> int:
    """Places that must be free before a request is sent: the first beam of a search is sent where all find one."""
    if submit.gang is None:
        return 1
    return submit.params.n if submit.gang == submit.request_id else 0


def request_output(
    prompt: PreparedPrompt, samples: Sequence[Sample], message: Callable[[Sample], Mapping[str, Any]] | None
) -> RequestOutput:
    """The record of a finished request; ``message``: what a sample comes to, in a conversation.

    Raises LinnetError when the engine ended a sample with an error.
    """
    for sample in samples:
        sample.raise_error()
    first = samples[0].stream
    return RequestOutput(
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        outputs=tuple(sample.stream.completion(message and message(sample)) for sample in samples),
        prompt_logprobs=first.prompt_scores,
        cached_tokens=first.cached_tokens,
    )
