# SPDX-License-Identifier: Apache-2.0
"""Beam search: of the continuations of all beams of a prompt, which go on and which are answers.

The samples of a request are its beams. Each is a request of its own to the scheduler; when all of them have computed
their last token in one step, the most likely continuations are shared out among them (`Tokens.origin` says whose
sequence each one continues). Until then those that have are asked again. Which continuations go on, how answers are
ranked and when a search ends is what transformers' ``generate(num_beams=…)`` does, so that answers are equal to its.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from linnet.engine.messages import Submit
from linnet.scheduler import Request, TokenLogprob, Tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished sequence. ``score``: the sum of its log-probabilities / its length ** length_penalty."""

    score: float
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam and one token that may follow it. ``total``: the sum of log-probabilities with it."""

    total: float
    beam: int
    told: TokenLogprob


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a step of the search gave: the tokens of those that go on, or the end."""

    tokens: dict[int, Tokens] = field(default_factory=dict)
    ended: bool = False


class BeamGroup:
    """The beams of one prompt. ``join`` them, ``offer`` what may follow each, ``choose`` when all have."""

    def __init__(self, submit: Submit) -> None:
        self._params = submit.params
        self._stops, self._most_tokens = submit.stop_token_ids, submit.max_tokens
        self._beams: list[Request] = []
        self._totals: dict[int, float] = {}
        self._told: dict[int, tuple[TokenLogprob, ...]] = {}
        self._offers: dict[int, list[TokenLogprob]] = {}
        self._answers: list[Answer] = []
        self.ended = False

    @property
    def width(self) -> int:
        """How many beams there are to be."""
        return self._params.n

    @property
    def alternatives(self) -> int:
        """Tokens to be told for each beam: with so many, as many as there are beams can go on if all stop tokens are
        likely."""
        return self.width + len(self._stops)

    def join(self, request: Request) -> None:
        """Another beam."""
        self._beams.append(request)
        self._totals[request.request_id] = 0.0
        self._told[request.request_id] = ()

    @property
    def complete(self) -> bool:
        """Whether all beams have joined."""
        return len(self._beams) == self.width

    @property
    def request_ids(self) -> tuple[int, ...]:
        """Of the beams that have joined."""
        return tuple(beam.request_id for beam in self._beams)

    def offer(self, request_id: int, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """The likeliest tokens after a beam's last one, greatest first."""
        top = tuple(zip(token_ids, logprobs, strict=True))
        shown = top[: self._params.logprobs or 0]
        self._offers[request_id] = [TokenLogprob(token_id, logprob, shown) for token_id, logprob in top]

    def choose(self) -> Chosen:
        """Take the offers of the step; nothing comes of them until every beam has one."""
        offers, self._offers = self._offers, {}
        if len(offers) < self.width:
            return Chosen()
        length = self._beams[0].generated_tokens + 1
        candidates = self._ranked(offers, length)
        going_on = [one for one in candidates if not self._ends(one, length)][: self.width]
        self._collect([one for one in candidates[: self.width] if self._ends(one, length)], length)
        if not going_on or self._settled(going_on[0], length):
            self.ended = True
            return Chosen(ended=True)
        return Chosen(self._shared_out(going_on))

    def answer(self, request_id: int) -> Answer:
        """The best answer for the first beam, the second best for the next …; once the search has ended."""
        return self._answers[self.request_ids.index(request_id)]

    def _ranked(self, offers: dict[int, list[TokenLogprob]], length: int) -> list[Candidate]:
        """Likeliest first; equal ones by beam and token. Beams are all the same before their first token."""
        beams = self._beams[:1] if length == 1 else self._beams
        too_early = self._stops if length <= self._params.min_tokens else frozenset()
        candidates = [
            Candidate(self._totals[beam.request_id] + told.logprob, place, told)
            for place, beam in enumerate(beams)
            for told in offers[beam.request_id]
            if told.token_id not in too_early
        ]
        candidates.sort(key=lambda one: (-one.total, one.beam, one.told.token_id))
        return candidates

    def _ends(self, one: Candidate, length: int) -> bool:
        return length >= self._most_tokens or one.told.token_id in self._stops

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self._params.length_penalty)

    def _collect(self, ending: Sequence[Candidate], length: int) -> None:
        """Keep the best answers, as many as there are beams; with early_stopping the first ones."""
        if self._params.early_stopping is True and len(self._answers) == self.width:
            return
        for one in ending:
            beam = self._beams[one.beam]
            tokens = (*beam.generated_token_ids, one.told.token_id)
            told = (*self._told[beam.request_id], one.told) if self._params.logprobs is not None else ()
            reason: Literal["stop", "length"] = "stop" if one.told.token_id in self._stops else "length"
            self._answers.append(Answer(self._score(one.total, length), tokens, told, reason))
        self._answers = sorted(self._answers, key=lambda answer: -answer.score)[: self.width]

    def _settled(self, best: Candidate, length: int) -> bool:
        """Whether nothing that still runs is going to change the answers.

        False supposes that the best score is reached at the present length; 'never' grants a positive length penalty
        the longest answer there could be.
        """
        if len(self._answers) < self.width:
            return False
        if self._params.early_stopping is True:
            return True
        patient = self._params.early_stopping == "never" and self._params.length_penalty > 0.0
        reached = self._score(best.total, self._most_tokens if patient else length)
        return reached <= self._answers[-1].score

    def _shared_out(self, going_on: Sequence[Candidate]) -> dict[int, Tokens]:
        """Each candidate to a beam: the first of a beam's own stays with it, so that nothing is copied for it."""
        own: dict[int, Candidate] = {}
        for one in going_on:
            own.setdefault(one.beam, one)
        left = [one for one in going_on if own[one.beam] is not one]
        chosen = [own.get(place) or left.pop(0) for place in range(self.width)]
        ids = self.request_ids
        self._totals = {ids[place]: one.total for place, one in enumerate(chosen)}
        if self._params.logprobs is not None:
            self._told = {ids[place]: (*self._told[ids[one.beam]], one.told) for place, one in enumerate(chosen)}
        return {
            ids[place]: Tokens(ids[place], (one.told.token_id,), origin=ids[one.beam])
            for place, one in enumerate(chosen)
        }
