# SPDX-License-Identifier: Apache-2.0
"""Beam search: of the continuations of all beams of a prompt, which go on and which are answers.

The samples of a request are its beams. Each is a request of its own to the scheduler; when all of them have computed
their last token in one step, the most likely continuations are shared out among them (`Tokens.origin` says whose
sequence each one continues). Until then those that have are asked again. Which continuations go on, how answers are
ranked and when a search ends is what transformers' ``generate(num_beams=…)`` does, so that answers are equal to its.

Beside a grammar the continuations offered are the likeliest allowed ones, and an answer ends where the grammar has.
Log-probabilities stay those of the model (as with transformers' ``prefix_allowed_tokens_fn``): of two texts that match,
the one is better that the model would rather have written, not the one that the grammar left fewer choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import inf
from typing import Literal, NamedTuple

from linnet.engine.matching import Matching
from linnet.engine.messages import Submit
from linnet.engine.sampling_params import ParameterError
from linnet.scheduler import Request, TokenLogprob, Tokens

EndReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished sequence. ``score``: the sum of its log-probabilities / its length ** length_penalty."""

    score: float
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: EndReason


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
    """The beams of one prompt. ``join`` them, ``offer`` what may follow each, ``choose`` when all have.

    A beam that nothing is left for (a grammar may leave fewer ways than there are beams, and before the first token all
    beams are the same) is idle: a copy of another one, which gets tokens as all do and stands for nothing.
    """

    def __init__(self, submit: Submit) -> None:
        self._first = submit
        self._params = submit.params
        self._stops, self._most_tokens = submit.stop_token_ids, submit.max_tokens
        self._grammar_ends = 0 if submit.grammar is None else self._params.n
        self._beams: list[Request] = []
        self._totals: dict[int, float] = {}
        self._told: dict[int, tuple[TokenLogprob, ...]] = {}
        self._matchings: dict[int, Matching] = {}
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
        likely, or as many others end a grammar (``EngineFacts.validate`` sees to it that the vocabulary has them)."""
        return max(self.width + len(self._stops) + self._grammar_ends, self._params.logprobs or 0)

    def may_join(self, submit: Submit) -> bool:
        """Whether a request is another beam of this search: of the same prompt, with the same ends."""
        first = self._first
        same = "prompt_token_ids", "cache_salt", "shared_tokens", "max_tokens", "stop_token_ids", "adapter", "grammar"
        return submit.fork_of == first.request_id and all(
            getattr(submit, name) == getattr(first, name) for name in same
        )

    def join(self, request: Request, matching: Matching | None = None) -> None:
        """Another beam, with its grammar. All but the first are idle until there is more than one way to go on."""
        self._totals[request.request_id] = -inf if self._beams else 0.0
        self._beams.append(request)
        if matching is not None:
            self._matchings[request.request_id] = matching
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
        """Take the offers of the step; nothing comes of them until every beam has one, and when the search ends.

        Raises ParameterError where a grammar has fewer answers than there are to be.
        """
        offers = [self._offers.get(request_id) for request_id in self.request_ids]
        self._offers = {}
        given = [offer for offer in offers if offer is not None]
        if len(given) < self.width:
            return {}
        length = self._beams[0].generated_tokens + 1
        going_on, ending = self._parted(self._ranked(given, length), length)
        self._collect(ending, given, length)
        if not going_on or self._settled(going_on[0], length):
            self._check_answers()
            self.ended = True
            return {}
        return self._shared_out(going_on, given)

    def answer(self, request_id: int) -> Answer:
        """The best answer for the first beam, the second best for the next …; once the search has ended."""
        return self._answers[self.request_ids.index(request_id)]

    def _ranked(self, offers: Sequence[Offer], length: int) -> list[Candidate]:
        """The likeliest, so many that as many as there are beams go on."""
        too_early = self._stops if length <= self._params.min_tokens else frozenset()
        candidates = (
            Candidate(-self._totals[self._beams[beam].request_id] - logprob, beam, token_id, place)
            for beam, offer in enumerate(offers)
            if self._totals[self._beams[beam].request_id] > -inf
            for place, (token_id, logprob) in enumerate(zip(offer.token_ids, offer.logprobs, strict=True))
            if logprob > -inf and token_id not in too_early
        )
        return nsmallest(self.width * (1 + len(self._stops)) + self._grammar_ends, candidates)

    def _parted(
        self, candidates: Sequence[Candidate], length: int
    ) -> tuple[list[Candidate], list[tuple[Candidate, EndReason]]]:
        """Those that go on, as many as there are beams, and those of the best so many that end."""
        going_on: list[Candidate] = []
        ending: list[tuple[Candidate, EndReason]] = []
        for rank, one in enumerate(candidates):
            reason = self._end(one, length)
            if reason is None:
                going_on.append(one)
            elif rank < self.width:
                ending.append((one, reason))
            if len(going_on) == self.width:
                break
        return going_on, ending

    def _end(self, one: Candidate, length: int) -> EndReason | None:
        """Why the sequence ends with its token; None: it goes on."""
        matching = self._matchings.get(self._beams[one.beam].request_id)
        if one.token_id in self._stops or (matching is not None and matching.ends_with(one.token_id)):
            return "stop"
        return "length" if length >= self._most_tokens else None

    def _score(self, one: Candidate, length: int) -> float:
        return float(-one.loss / length**self._params.length_penalty)

    def _told_with(self, one: Candidate, offers: Sequence[Offer]) -> tuple[TokenLogprob, ...]:
        """What was told of the sequence and is of the token, if it was asked for."""
        if self._params.logprobs is None:
            return ()
        before = self._told[self._beams[one.beam].request_id]
        return (*before, offers[one.beam].told(one.place, self._params.logprobs))

    def _collect(self, ending: Sequence[tuple[Candidate, EndReason]], offers: Sequence[Offer], length: int) -> None:
        """Keep the best answers, as many as there are beams; with early_stopping the first so many."""
        if self._params.early_stopping is True and len(self._answers) == self.width:
            return
        for one, reason in ending:
            tokens = (*self._beams[one.beam].generated_token_ids, one.token_id)
            self._answers.append(Answer(self._score(one, length), tokens, self._told_with(one, offers), reason))
        self._answers = sorted(self._answers, key=lambda answer: -answer.score)[: self.width]

    def _check_answers(self) -> None:
        """A grammar may have fewer answers than there are beams."""
        if len(self._answers) < self.width:
            raise ParameterError(
                "n",
                f"n is {self.width}; accepted is at most {len(self._answers)}: use_beam_search finds no more answers",
            )

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
        """Each candidate to a beam: the first of a beam's own stays with it, so that nothing is copied for it. Beams
        that are left over are idle."""
        own: dict[int, Candidate] = {}
        for one in going_on:
            own.setdefault(one.beam, one)
        left = [one for one in going_on if own[one.beam] is not one]
        left += [going_on[0]._replace(loss=inf)] * (self.width - len(going_on))
        chosen = [own.get(place) or left.pop(0) for place in range(self.width)]
        ids = self.request_ids
        self._totals = {ids[place]: -one.loss for place, one in enumerate(chosen)}
        self._told = {ids[place]: self._told_with(one, offers) for place, one in enumerate(chosen)}
        if self._matchings:
            self._advance(chosen)
        return {
            ids[place]: Tokens(ids[place], (one.token_id,), origin=ids[one.beam]) for place, one in enumerate(chosen)
        }

    def _advance(self, chosen: Sequence[Candidate]) -> None:
        """Tell the grammars. A beam that others go on from goes on itself, so its matcher is copied before it does."""
        matchings = [self._matchings[request_id] for request_id in self.request_ids]
        for place, one in enumerate(chosen):
            if one.beam != place:
                matchings[place].follow(matchings[one.beam])
        for matching, one in zip(matchings, chosen, strict=True):
            matching.accept([one.token_id])
