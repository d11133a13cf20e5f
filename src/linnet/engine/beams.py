# SPDX-License-Identifier: Apache-2.0
"""Beam search: of the continuations of all beams of a prompt, which go on and which are answers.

The samples of a request are its beams. Each is a request of its own to the scheduler; when all of them have computed
their last token in one step, the most likely continuations are shared out among them (`Tokens.origin` says whose
sequence each one continues). Until then those that have are asked again. Which continuations go on, how answers are
ranked and when a search ends is what transformers' ``generate(num_beams=…)`` does, so that answers are equal to its.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Literal, NamedTuple

from linnet.engine.messages import Submit
from linnet.scheduler import Request, TokenLogprob, Tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished sequence. ``score``: the sum of its log-probabilities / its length ** length_penalty."""

    score: float
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: Literal["stop", "length"]


class Candidate(NamedTuple):
    """A beam, by its place, and one token that may follow it; they sort likeliest first, then by beam and token.

    loss:   the negative sum of log-probabilities with the token. place: of the token among those offered for the beam.
    """

    loss: float
    beam: int
    token_id: int
    place: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The likeliest tokens after a beam's last one, greatest first, and their log-probabilities."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]

    def told(self, place: int, top: int) -> TokenLogprob:
        """One of them, with the ``top`` likeliest."""
        alternatives = zip(self.token_ids[:top], self.logprobs[:top], strict=True)
        return TokenLogprob(self.token_ids[place], self.logprobs[place], tuple(alternatives))


class BeamGroup:
    """The beams of one prompt. ``join`` them, ``offer`` what may follow each, ``choose`` when all have."""

    def __init__(self, submit: Submit) -> None:
        self._first = submit
        self._params = submit.params
        self._stops, self._most_tokens = submit.stop_token_ids, submit.max_tokens
        self._beams: list[Request] = []
        self._totals: dict[int, float] = {}
        self._told: dict[int, tuple[TokenLogprob, ...]] = {}
        self._offers: dict[int, Offer] = {}
        self._answers: list[Answer] = []
        self.ended = False

    @property
    def width(self) -> int:
        """How many beams there are to be."""
        return self._params.n

    @property
    def alternatives(self) -> int:
        """Tokens to be told for each beam: with so many, as many as there are beams can go on if all stop tokens are
        likely (``EngineFacts.validate`` sees to it that the vocabulary has them)."""
        return max(self.width + len(self._stops), self._params.logprobs or 0)

    def may_join(self, submit: Submit) -> bool:
        """Whether a request is another beam of this search: of the same prompt, with the same ends."""
        first = self._first
        same = "prompt_token_ids", "cache_salt", "shared_tokens", "max_tokens", "stop_token_ids", "adapter"
        return submit.fork_of == first.request_id and all(
            getattr(submit, name) == getattr(first, name) for name in same
        )

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
        """What may follow a beam in this step, greatest first."""
        self._offers[request_id] = Offer(token_ids, logprobs)

    def choose(self) -> dict[int, Tokens]:
        """Take the offers of the step; nothing comes of them until every beam has one, and when the search ends."""
        offers = [self._offers.get(request_id) for request_id in self.request_ids]
        self._offers = {}
        given = [offer for offer in offers if offer is not None]
        if len(given) < self.width:
            return {}
        length = self._beams[0].generated_tokens + 1
        candidates = self._ranked(given, length)
        going_on = [one for one in candidates if not self._ends(one, length)][: self.width]
        self._collect([one for one in candidates[: self.width] if self._ends(one, length)], given, length)
        if not going_on or self._settled(going_on[0], length):
            self.ended = True
            return {}
        return self._shared_out(going_on, given)

    def answer(self, request_id: int) -> Answer:
        """The best answer for the first beam, the second best for the next …; once the search has ended."""
        return self._answers[self.request_ids.index(request_id)]

    def _ranked(self, offers: Sequence[Offer], length: int) -> list[Candidate]:
        """The likeliest, so many that as many as there are beams go on. Beams are all the same before their first
        token."""
        too_early = self._stops if length <= self._params.min_tokens else frozenset()
        candidates = (
            Candidate(-self._totals[self._beams[beam].request_id] - logprob, beam, token_id, place)
            for beam, offer in enumerate(offers[:1] if length == 1 else offers)
            for place, (token_id, logprob) in enumerate(zip(offer.token_ids, offer.logprobs, strict=True))
            if token_id not in too_early
        )
        return nsmallest(self.width * (1 + len(self._stops)), candidates)

    def _ends(self, one: Candidate, length: int) -> bool:
        return length >= self._most_tokens or one.token_id in self._stops

    def _score(self, one: Candidate, length: int) -> float:
        return float(-one.loss / length**self._params.length_penalty)

    def _told_with(self, one: Candidate, offers: Sequence[Offer]) -> tuple[TokenLogprob, ...]:
        """What was told of the sequence and is of the token, if it was asked for."""
        if self._params.logprobs is None:
            return ()
        before = self._told[self._beams[one.beam].request_id]
        return (*before, offers[one.beam].told(one.place, self._params.logprobs))

    def _collect(self, ending: Sequence[Candidate], offers: Sequence[Offer], length: int) -> None:
        """Keep the best answers, as many as there are beams; with early_stopping the first so many."""
        if self._params.early_stopping is True and len(self._answers) == self.width:
            return
        for one in ending:
            tokens = (*self._beams[one.beam].generated_token_ids, one.token_id)
            reason: Literal["stop", "length"] = "stop" if one.token_id in self._stops else "length"
            self._answers.append(Answer(self._score(one, length), tokens, self._told_with(one, offers), reason))
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
        return self._score(best, self._most_tokens if patient else length) <= self._answers[-1].score

    def _shared_out(self, going_on: Sequence[Candidate], offers: Sequence[Offer]) -> dict[int, Tokens]:
        """Each candidate to a beam, of which there are as many: the first of a beam's own stays with it, so that
        nothing is copied for it."""
        own: dict[int, Candidate] = {}
        for one in going_on:
            own.setdefault(one.beam, one)
        left = [one for one in going_on if own[one.beam] is not one]
        chosen = [own.get(place) or left.pop(0) for place in range(self.width)]
        ids = self.request_ids
        self._totals = {ids[place]: -one.loss for place, one in enumerate(chosen)}
        self._told = {ids[place]: self._told_with(one, offers) for place, one in enumerate(chosen)}
        return {
            ids[place]: Tokens(ids[place], (one.token_id,), origin=ids[one.beam]) for place, one in enumerate(chosen)
        }
