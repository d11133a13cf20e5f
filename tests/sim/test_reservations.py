# SPDX-License-Identifier: Apache-2.0
"""What it buys to leave room for what answers are expected to need, in virtual time: fewer who have to make way."""

from random import Random

from replay import Asked, Replay, VirtualWorld, replay

from linnet.scheduler import SchedulerConfig, StepPlan
from linnet.scheduler.config import Reserve


def crowd(seed: int) -> list[Asked]:
    """Answers of about 60 tokens to prompts of 16, which all may have 400; more at once than there is memory for."""
    random = Random(seed)
    lengths = [max(int(random.gauss(60, 15)), 1) for _ in range(60)]
    return [Asked(0.02 * index, 16, length, b"one", 400) for index, length in enumerate(lengths)]


def ran(reserve: Reserve, seed: int) -> Replay:
    def step_s(plan: StepPlan) -> float:
        return 0.01 + 0.0002 * plan.total_tokens

    config = SchedulerConfig(
        num_blocks=64, max_model_len=512, block_size=8, max_sequences=16, prefix_cache=False, reserve=reserve
    )
    return replay(VirtualWorld(config, step_s), crowd(seed))


def test_expected_room_spares_preemptions_and_costs_seats() -> None:
    """Memory of 512 slots; a request takes about 76, so 16 seats are more than fit."""
    for seed in range(2):
        none, past, limit = ran("none", seed), ran("past", seed), ran("limit", seed)
        assert none.preemptions > 20
        assert past.preemptions < none.preemptions / 4
        assert past.computed_again < none.computed_again / 4
        assert none.end_s < past.end_s < limit.end_s / 3, "fewer run at once, far more than where all is reserved"
        assert limit.preemptions == 0, "what the longest may need is free for everybody"
        assert none.new_tokens == past.new_tokens == limit.new_tokens
