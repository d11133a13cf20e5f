# SPDX-License-Identifier: Apache-2.0
"""What the scheduler may spend: tokens, output rows and seconds per step, sequences, blocks, queue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from linnet.errors import ConfigError, unknown_choice

from .groups import CacheGroup

Policy = Literal["fcfs", "priority", "mlfq", "shortest", "fair"]
Lengths = Literal["past", "limit"]
Reserve = Literal["none", "past", "limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler; raises ConfigError for values that could not work.

    num_blocks, block_size: the KV cache, in blocks and in token slots per block: of the first cache group.
    window:                 how many last keys a row of its layers sees; None: all.
    more_groups:            the other cache groups, see `groups.py`.
    max_model_len:          prompt plus new tokens of one request.
    token_budget:           tokens computed in one step, over all requests.
    step_budget_s:          seconds that a step may take while anybody is decoding: prompts are cut to what fits, but
                            get a quarter of it at least. None: only the token budget bounds a step.
    max_sequences:          requests running at once.
    max_waiting_requests:   requests accepted beyond `max_sequences`; at most max_sequences + max_waiting_requests
                            are unfinished at any time, whenever they came.
    max_chunk_tokens:       tokens of *one* request in one step; None: the token budget. A smaller chunk lets several
                            prompts advance side by side.
    max_output_rows:        rows with logits in one step; None: the token budget or max_sequences, whichever is more.
                            Only `score_prompt` asks for more than one row per request; this bounds its memory.
    prefix_cache:           reuse the blocks of known prefixes.
    state_slots:            places for what sequences carry from token to token, one for each that runs; 0: they carry
                            nothing. Such a state lies behind its last token only, so there is no prefix cache then.
    swap_blocks:            blocks of a second store, for those that the KV cache has no room for; 0: there is none. Of
                            the first cache group: if it has one all have.
    kept_share:             of the blocks, the most that conversations and prompt modules keep for themselves between
                            requests: they are forgotten after all others. 0: none.
    policy:                 'fcfs' (by arrival), 'priority' (smaller numbers first, then by arrival), 'mlfq' (requests
                            that have had little first), 'shortest' (those expected to be done first), 'fair' (tenants
                            that have had little first). See `policies.py`.
    ageing_s:               waiting that long makes up for one level of priority; under 'mlfq', brings to the front.
                            None: never; under 'mlfq', 30 s.
    predict_length:         how long 'shortest' takes an answer to be: 'past' (as the tenant's last ones and everybody's
                            last ones were) or 'limit' (as long as it is allowed to be).
    reserve:                what admission leaves free for those who run beyond their next tokens: 'none', what their
                            answers are expected to need ('past') or may need ('limit'). See `reservations.py`.
    whole_prompts:          a request is computed in one step: its tokens see those behind them. Nothing is generated
                            then, and no prefix is known.
    preempt_every:          a test mode: every that many steps the newest running request that has made progress since
                            its admission is preempted; None: only for lack of blocks.
    """

    num_blocks: int
    max_model_len: int
    block_size: int = 16
    token_budget: int = 512
    step_budget_s: float | None = None
    max_sequences: int = 64
    max_waiting_requests: int = 1024
    max_chunk_tokens: int | None = None
    max_output_rows: int | None = None
    prefix_cache: bool = True
    state_slots: int = 0
    swap_blocks: int = 0
    kept_share: float = 0.5
    policy: Policy = "fcfs"
    ageing_s: float | None = None
    predict_length: Lengths = "past"
    reserve: Reserve = "none"
    preempt_every: int | None = None
    whole_prompts: bool = False
    window: int | None = None
    more_groups: tuple[CacheGroup, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_blocks", "max_model_len", "block_size", "token_budget", "max_sequences"):
            _at_least(1, name, getattr(self, name))
        _at_least(0, "max_waiting_requests", self.max_waiting_requests)
        _at_least(0, "swap_blocks", self.swap_blocks)
        _at_least(0, "state_slots", self.state_slots)
        if self.state_slots and self.prefix_cache:
            raise ConfigError(
                f"prefix_cache is on with state_slots {self.state_slots}; accepted is off, because the states of a "
                "prefix are gone once its sequence has gone on",
                settings=["prefix_cache"],
            )
        if self.whole_prompts:
            self._check_whole_prompts()
        if self.swap_blocks and not self.prefix_cache:
            raise ConfigError(
                f"swap_blocks is {self.swap_blocks} without the prefix cache; accepted is 0, because what was swapped "
                "out is found again by its prefix",
                settings=["kv_swap_bytes", "prefix_cache"],
            )
        for group in self.groups:
            _at_least(1, "num_blocks", group.num_blocks)
            if group.window is not None:
                _at_least(1, "window", group.window)
            if (group.swap_blocks > 0) != (self.swap_blocks > 0):
                raise ConfigError("swap_blocks is 0 for some cache groups; accepted is 0 for all or for none")
        for name in ("step_budget_s", "ageing_s"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"{name} is {seconds}; accepted is more than 0", settings=[name])
        if not 0 <= self.kept_share <= 1:
            raise ConfigError(f"kept_share is {self.kept_share}; accepted is 0 to 1", settings=["kept_share"])
        if self.max_chunk_tokens is not None:
            _at_least(1, "max_chunk_tokens", self.max_chunk_tokens)
        if self.preempt_every is not None:
            _at_least(1, "preempt_every", self.preempt_every)
        if self.max_output_rows is not None:
            # Fewer rows than sequences would make a sequence wait although it has tokens to compute.
            _at_least(self.max_sequences, "max_output_rows", self.max_output_rows)
        if self.policy not in get_args(Policy):
            raise unknown_choice("scheduling", self.policy, get_args(Policy))
        if self.predict_length not in get_args(Lengths):
            raise unknown_choice("predict_length", self.predict_length, get_args(Lengths))
        if self.reserve not in get_args(Reserve):
            raise unknown_choice("reserve", self.reserve, get_args(Reserve))

    def _check_whole_prompts(self) -> None:
        """Every prompt that is accepted must fit into a step."""
        if self.prefix_cache:
            raise ConfigError(
                "prefix_cache is on with whole_prompts; accepted is off, because a prefix means something else in "
                "front of other tokens",
                settings=["prefix_cache"],
            )
        for name, most in (("token_budget", self.chunk_tokens), ("max_output_rows", self.output_rows)):
            if most < self.max_model_len:
                raise ConfigError(
                    f"{name} allows {most} tokens of a request in one step; accepted with whole_prompts is "
                    f"{self.max_model_len} or more (max_model_len)",
                    settings=["token_budget", "max_model_len"],
                )

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """All cache groups."""
        return (CacheGroup(self.num_blocks, self.window, self.swap_blocks), *self.more_groups)

    @property
    def share_kept(self) -> float:
        """Of the blocks of each group, the most that are kept for conversations and prompt modules."""
        return self.kept_share if self.prefix_cache else 0.0

    def with_swap_blocks(self, counts: Sequence[int]) -> "SchedulerConfig":
        """The same with tiers of so many blocks behind the groups."""
        first, *others = counts
        groups = [replace(group, swap_blocks=n) for group, n in zip(self.more_groups, others, strict=True)]
        return replace(self, swap_blocks=first, more_groups=tuple(groups))

    def held_blocks(self, tokens: int) -> tuple[int, ...]:
        """Of each group, the most blocks that a request of so many token slots holds at a time."""
        return tuple(group.most_blocks(tokens, self.chunk_tokens, self.block_size) for group in self.groups)

    @property
    def chunk_tokens(self) -> int:
        """The most tokens of one request in one step."""
        return self.token_budget if self.max_chunk_tokens is None else min(self.max_chunk_tokens, self.token_budget)

    def excess_tokens(self, prompt_tokens: int, new_tokens: int) -> int:
        """By how many tokens a request is longer than `max_model_len`; not above 0 where it fits. The length rule."""
        return prompt_tokens + new_tokens - self.max_model_len

    @property
    def output_rows(self) -> int:
        """The most rows with logits in one step: what the engine must be able to hold."""
        return max(self.token_budget, self.max_sequences) if self.max_output_rows is None else self.max_output_rows


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; accepted is {least} or more", settings=[name])
