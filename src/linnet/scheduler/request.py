# SPDX-License-Identifier: Apache-2.0
"""The two-counter request: tokens that are known, and how many of them have been computed.

A request runs while `computed` lags behind `len(known)`. A prompt being read in chunks, a prefix taken from the cache,
a token being decoded and a recompute after a preemption differ in these two numbers only.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from .uses import Hidden, RowUse, Sample, Score, Verify

FinishReason = Literal["stop", "length", "abort", "timeout", "queue_timeout", "error"]
"""timeout: its deadline passed while it was computed; queue_timeout: before it ever was."""


class RequestState(Enum):
    """Where a request is; it moves waiting ⇄ running (preemption goes back) and ends finished."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """Ids, limits and progress of one request; no text, no tensors, no sampling parameters.

    The caller sets the first group; the scheduler alone mutates the second.

    max_new_tokens:  0 is allowed with `score_prompt` only: then nothing is sampled.
    stop_token_ids:  a sampled stop token ends the request once at least `min_new_tokens` tokens precede it.
    arrival_s:       on the clock whose `now` the scheduler is given; the order of 'fcfs'.
    priority:        smaller is more important; the order of 'priority'.
    tenant:          who asks; 'fair' shares between tenants, 'shortest' predicts by their past answers.
    cache_salt:      requests share cached blocks only under the same salt.
    shared_tokens:   but for the full blocks of so many first tokens, which everybody shares who says so.
    score_prompt:    score prompt tokens after position `scored`; prefix-cache hits end there (they have no logits).
    hidden:          with `score_prompt`, and nothing generated: the prompt rows from `scored` on, the last one too,
                     yield hidden states instead of scores.
    deadline_s:      the first schedule(now) with now >= deadline_s ends it: reason 'timeout', or 'queue_timeout'.
    participants:    which of the engine's models compute the request's tokens.
    fork_of:         id of a request with the same prompt and salt: what that has computed of it is copied, not computed
                     again, if it runs when this one is admitted. Unknown and finished ids are ignored.
    gang:            id of the first of those that get tokens only when all of them are computed in one step, itself for
                     that one: they are ordered as it is, one after the other, and preempted together.
    adapter:         place of the adapter that its rows go through; None: none.
    namespace:       what computes it besides the models: requests share cached blocks only under the same.
    draft_token_ids: guesses at what follows `known`, which the caller may set between steps. They cost time and change
                     no token; a step that takes them uses them up.

    known:           prompt and generated token ids, append-only.
    computed:        how many of them have their keys and values in `block_ids`.
    block_ids:       of each cache group, while it runs: the blocks of its first tokens, in order; GIVEN_BACK stands for
                     those that it need not hold any more.
    given_back:      of each cache group, how many those are: the first ones.
    scored:          prompt rows whose logits were delivered or are not wanted; all of them when none were asked for.
                     The caller may raise it before add() to leave out the first rows.
    state_slot:      where it keeps what it carries from token to token, while it runs and if it does.
    published:       full blocks, from the first, that need not be published (again).
    digests:         names of the first full blocks, extended on demand; kept across preemptions.
    progressed:      whether anything new was delivered since the last admission.
    owed:            tokens or scores to deliver before anybody may take its place: as many as were to be computed when
                     it was admitted, which would be lost.
    reached:         tokens that were computed at some time; below it, computing is computing again.
    started_s:       the schedule(now) of its first admission; None while it has never run.
    sequence:        order of add(), set by the scheduler; breaks ties.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0
    arrival_s: float = 0.0
    priority: int = 0
    tenant: bytes = b""
    cache_salt: bytes = b""
    shared_tokens: int = 0
    score_prompt: bool = False
    hidden: bool = False
    deadline_s: float | None = None
    participants: tuple[int, ...] = (0,)
    fork_of: int | None = None
    gang: int | None = None
    adapter: int | None = None
    namespace: bytes = b""
    draft_token_ids: tuple[int, ...] = ()

    known: list[int] = field(init=False)
    computed: int = field(init=False, default=0)
    block_ids: list[list[int]] = field(init=False, default_factory=list)
    given_back: list[int] = field(init=False, default_factory=list)
    state_slot: int | None = field(init=False, default=None)
    state: RequestState = field(init=False, default=RequestState.WAITING)
    finish_reason: FinishReason | None = field(init=False, default=None)
    cached_tokens: int | None = field(init=False, default=None)
    scored: int = field(init=False)
    published: int = field(init=False, default=0)
    digests: list[bytes] = field(init=False, default_factory=list)
    progressed: bool = field(init=False, default=False)
    owed: int = field(init=False, default=0)
    reached: int = field(init=False, default=0)
    preemptions: int = field(init=False, default=0)
    started_s: float | None = field(init=False, default=None)
    sequence: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.prompt_token_ids = tuple(self.prompt_token_ids)
        self.known = list(self.prompt_token_ids)
        self.scored = 0 if self.score_prompt else len(self.prompt_token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def queued_s(self) -> float | None:
        """Seconds from its arrival to its first admission; None when it has never run."""
        return None if self.started_s is None else max(self.started_s - self.arrival_s, 0.0)

    @property
    def generated_tokens(self) -> int:
        """How many tokens were generated so far."""
        return len(self.known) - len(self.prompt_token_ids)

    @property
    def generated_token_ids(self) -> tuple[int, ...]:
        """The tokens generated so far, a stop token included."""
        return tuple(self.known[len(self.prompt_token_ids) :])

    @property
    def remaining(self) -> int:
        """Known tokens that are still to be computed."""
        return len(self.known) - self.computed

    @property
    def most_slots(self) -> int:
        """Token slots the request can ever need: the last token it may generate is never computed."""
        return len(self.prompt_token_ids) + max(self.max_new_tokens, 1) - 1

    def may_fork(self, origin: "Request") -> bool:
        """Whether keys and values of the origin's prompt are this request's too. Mutates nothing."""
        return (
            origin.state is RequestState.RUNNING
            and self.has_prompt_of(origin)
            and origin.cache_salt == self.cache_salt
            and origin.namespace == self.namespace
            and origin.shared_tokens == self.shared_tokens
            and origin.participants == self.participants
        )

    def has_prompt_of(self, other: "Request") -> bool:
        """Whether the prompts are equal; the samples of one request share theirs. Mutates nothing."""
        return other.prompt_token_ids is self.prompt_token_ids or other.prompt_token_ids == self.prompt_token_ids

    def tokens_within_rows(self, n: int, rows: int) -> int:
        """The most of the next n tokens whose uses fit into `rows` (≥ 1) output rows. Mutates nothing.

        While prompt rows are outstanding nothing has been generated, so they and the last one are the only output rows;
        afterwards one row, the last, is all that is ever asked for.
        """
        first = max(self.scored, self.computed)
        outstanding = self.prompt_tokens - (self.max_new_tokens == 0 and not self.hidden) - first
        return n if outstanding <= rows else min(n, first - self.computed + rows)

    @property
    def useful_drafts(self) -> int:
        """How many guesses something can come of: the last token that may be generated is never computed, and what
        follows in a gang depends on the others."""
        return (
            0
            if self.gang is not None
            else min(len(self.draft_token_ids), self.max_new_tokens - self.generated_tokens - 1)
        )

    def drafts_within(self, n: int, most: int) -> tuple[int, ...]:
        """The guesses that follow the next n known tokens, `most` of them at most; none before the last known token.

        Mutates nothing.
        """
        if self.computed + n < len(self.known):
            return ()
        return self.draft_token_ids[: max(min(self.useful_drafts, most), 0)]

    def uses(self, n: int, drafts: tuple[int, ...] = ()) -> tuple[RowUse, ...]:
        """What the next n known tokens and `drafts` are for: undelivered prompt rows, and the next token.

        Mutates nothing.
        """
        start, end = self.computed, self.computed + n
        found: list[RowUse] = []
        first, last = max(start, self.scored), min(end, self.prompt_tokens - (not self.hidden))
        if first < last and self.hidden:
            found.append(Hidden(first - start, last - first))
        elif first < last:
            found.append(Score(first - start, self.prompt_token_ids[first + 1 : last + 1]))
        if end == len(self.known) and self.max_new_tokens > 0:
            found.append(Verify(n - 1, drafts) if drafts else Sample(n - 1))
        return tuple(found)

    def append(self, token_id: int) -> FinishReason | None:
        """Make a sampled token known; returns why the request ends with it, or None. Mutates `known` only."""
        may_stop = self.generated_tokens >= self.min_new_tokens
        self.known.append(token_id)
        if may_stop and token_id in self.stop_token_ids:
            return "stop"
        return "length" if self.generated_tokens >= self.max_new_tokens else None
