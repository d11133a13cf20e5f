# SPDX-License-Identifier: Apache-2.0
"""Policies: the same tokens whatever the order, and what each promises, in virtual time."""

from itertools import pairwise
from random import Random
from statistics import fmean
from typing import get_args

import pytest
from scheduler_world import TRIALS, random_config, random_workload, simulate
from test_simulated_laws import outcome, spacious
from test_virtual_time import OVERHEAD_S, TOKEN_S, Timeline, config, request, run_in_virtual_time

from linnet.scheduler import Request, Scheduler, SchedulerConfig
from linnet.scheduler.config import Policy
from linnet.scheduler.policies import FeedbackQueue, ShortestPredicted

POLICIES: tuple[Policy, ...] = get_args(Policy)


@pytest.mark.parametrize("seed", range(max(1, TRIALS // 3)))
def test_each_request_gets_the_same_whatever_the_policy(seed: int) -> None:
    random = Random(60_000 + seed)
    workload = random_workload(random, 12)
    plain = simulate(workload, spacious(workload))
    for policy in POLICIES:
        ageing_s = random.choice((None, 1.0, 5.0))
        fixed: dict[str, object] = {"policy": policy, "ageing_s": ageing_s, "max_sequences": random.choice((1, 2, 4))}
        assert outcome(simulate(workload, random_config(random, workload, **fixed))) == outcome(plain), policy


def test_policies_that_preempt_do() -> None:
    """Or the law above would say little about them."""
    preemptions = 0
    for seed in range(10):
        random = Random(seed)
        workload = random_workload(random, 12)
        settings = spacious(workload, policy="mlfq", max_sequences=2)
        preemptions += simulate(workload, settings).scheduler.counters().preemptions
    assert preemptions > 0


def small(**fields: object) -> SchedulerConfig:
    """A pool that is proved quickly after every step."""
    return config(**({"num_blocks": 128, "max_model_len": 512} | fields))


def crowd(count: int, every_s: float, first_id: int = 100, prompt: int = 16, new: int = 8) -> list[Request]:
    """Short requests, one after the other, more than can be served at once."""
    return [request(first_id + index, prompt, new, arrival_s=index * every_s) for index in range(count)]


def completion_s(timeline: Timeline, requests: list[Request]) -> float:
    return fmean(timeline.token_times_s[one.request_id][-1] - one.arrival_s for one in requests)


def test_the_feedback_queue_does_not_make_short_requests_wait_for_long_ones() -> None:
    def both() -> tuple[list[Request], list[Request]]:
        return [request(index, 64, 400) for index in range(2)], crowd(40, 0.25)

    means = {}
    for policy in ("fcfs", "mlfq"):
        long, short = both()
        timeline = run_in_virtual_time(Scheduler(small(policy=policy, max_sequences=2)), long + short)
        means[policy] = completion_s(timeline, short)
    assert means["mlfq"] < 0.2 * means["fcfs"]


PROMPT = 48


@pytest.mark.parametrize("starvation_s", [1.0, 2.0])
def test_the_feedback_queue_starves_nobody(starvation_s: float) -> None:
    """The bound: the wait that counts as starving, and a quantum for each who entered level 0 before.

    Short requests never stop coming and always fill both seats. A long one that waited `starvation_s` is put behind
    those at level 0, at most as many as came meanwhile; each leaves it after a quantum of tokens at the latest, and one
    step may have just begun. Nobody in the crowd owes more than that.
    """
    quantum = FeedbackQueue.QUANTUM_TOKENS

    def requests() -> list[Request]:
        return [*(request(index, PROMPT, 300) for index in range(2)), *crowd(250, 0.06)]

    def settings(starvation_s: float) -> SchedulerConfig:
        return small(policy="mlfq", ageing_s=starvation_s, max_sequences=2, token_budget=64)

    timeline = run_in_virtual_time(Scheduler(settings(starvation_s)), requests())
    long, short = requests()[:2], requests()[2:]
    step_s = OVERHEAD_S + 64 * TOKEN_S
    crowd_done_s = max(times[-1] for one, times in timeline.token_times_s.items() if one >= 100)
    ahead = most_waiting(timeline, short)
    bound = starvation_s + (ahead + len(long)) * quantum * (OVERHEAD_S + TOKEN_S) / 2 + 2 * step_s
    assert crowd_done_s > 1.5 * bound, "the crowd is there all the time"
    for one in long:
        times = [one.arrival_s, *timeline.token_times_s[one.request_id]]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        # The first token needs the whole prompt: some visits to level 0, a quantum each.
        assert gaps[0] <= (PROMPT / quantum + 1) * bound
        assert max(gaps[1:]) <= bound
    starved = run_in_virtual_time(Scheduler(settings(1e9)), requests())
    gaps = [later - earlier for earlier, later in pairwise(starved.token_times_s[0])]
    assert max(gaps) > bound, "without the rule it would wait longer"


def most_waiting(timeline: Timeline, requests: list[Request]) -> int:
    """The most of them that were unfinished at once."""
    moments = [(one.arrival_s, 1) for one in requests]
    moments += [(timeline.token_times_s[one.request_id][-1], -1) for one in requests]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def test_ageing_lets_the_unimportant_overtake_in_the_end() -> None:
    def requests() -> list[Request]:
        important = [request(index, 16, 8, arrival_s=0.05 * index) for index in range(1, 400)]
        return [request(0, 16, 8, arrival_s=1.0, priority=3), *important]

    strict = run_in_virtual_time(Scheduler(small(policy="priority", max_sequences=1)), requests())
    ageing = run_in_virtual_time(Scheduler(small(policy="priority", max_sequences=1, ageing_s=1.0)), requests())
    assert strict.first_s(0) > strict.end_s - 0.2, "strict: after everybody"
    # Before everybody who came more than three levels of a second later.
    later = [index for index in range(1, 400) if 0.05 * index > 4.0]
    assert all(ageing.first_s(0) < ageing.first_s(index) for index in later)


def tenants(shares: dict[bytes, int], prompt: int = 32, new: int = 16) -> list[Request]:
    """All at once, the greedier tenants first."""
    made: list[Request] = []
    for tenant, count in sorted(shares.items(), key=lambda share: -share[1]):
        for _ in range(count):
            one = request(len(made), prompt, new)
            one.tenant = tenant
            made.append(one)
    return made


def test_a_fair_share_does_not_depend_on_how_much_is_asked_for() -> None:
    requests = tenants({b"greedy": 100, b"modest": 10})
    of = {one.request_id: one.tenant for one in requests}
    modest = [one for one in requests if one.tenant == b"modest"]
    ends = {}
    for policy in ("fcfs", "fair"):
        timeline = run_in_virtual_time(
            Scheduler(small(policy=policy, max_sequences=4)), tenants({b"greedy": 100, b"modest": 10})
        )
        ends[policy] = max(timeline.token_times_s[one.request_id][-1] for one in modest)
        if policy == "fair":
            # Until the modest one is done, both got the same, but for what the seats hold (Theorem 4.3's bound).
            got = dict.fromkeys((b"greedy", b"modest"), 0)
            for request_id, times in timeline.token_times_s.items():
                got[of[request_id]] += sum(time <= ends[policy] for time in times)
            assert abs(got[b"greedy"] - got[b"modest"]) <= 2 * 4 * (32 + 16)
    assert ends["fair"] < 0.3 * ends["fcfs"]


def test_who_was_away_has_nothing_saved_up() -> None:
    """A tenant that comes late gets its share from then on, not what it did not use before."""
    early = tenants({b"early": 60})
    late = [request(100 + index, 32, 16, arrival_s=2.0) for index in range(60)]
    for one in late:
        one.tenant = b"late"
    timeline = run_in_virtual_time(Scheduler(small(policy="fair", max_sequences=4)), early + late)
    got = [sum(2.5 < time < 4.5 for time in timeline.token_times_s[one.request_id]) for one in (*early, *late)]
    assert 0.7 < sum(got[:60]) / sum(got[60:]) < 1.4


def test_shortest_predicted_first_starves_nobody() -> None:
    """The bound, in tokens: AGEING times its own, what the crowd had queued by then, and a step."""
    long = request(0, 60, 10, arrival_s=1.0)
    short = crowd(400, 0.05)
    timeline = run_in_virtual_time(
        Scheduler(small(policy="shortest", max_sequences=1, token_budget=64)), [long, *short]
    )
    assert max(timeline.token_times_s) > 0
    own = 60 + 10
    ahead = most_waiting(timeline, short) * (16 + 8)
    seconds_a_token = timeline.end_s / sum(one.prompt_tokens + one.max_new_tokens for one in (long, *short))
    bound = (ShortestPredicted.AGEING * own + ahead + 64) * seconds_a_token
    assert timeline.first_s(0) - 1.0 <= bound
    assert timeline.first_s(0) < 0.8 * timeline.end_s, "the crowd is there all the time"
    assert sum(timeline.first_s(one.request_id) < timeline.first_s(0) for one in short if one.arrival_s > 1.0) > 20


def test_shortest_predicted_first_learns_who_asks_for_little() -> None:
    """Both may generate 200 tokens; one tenant's answers end after 4. From the second round on it goes first."""

    def requests() -> list[Request]:
        made = []
        for turn in range(6):
            for tenant, new in ((b"talks", 200), (b"asks", 4)):
                one = request(len(made), 16, 200, arrival_s=4.0 * turn)
                one.tenant = tenant
                one.stop_token_ids = frozenset({7}) if tenant == b"asks" else frozenset()
                one.min_new_tokens = new - 1 if tenant == b"asks" else 0
                made.append(one)
        return made

    means = {}
    for policy in ("fcfs", "shortest"):
        made = requests()
        timeline = run_in_virtual_time(Scheduler(small(policy=policy, max_sequences=1)), made)
        means[policy] = completion_s(timeline, [one for one in made if one.tenant == b"asks"][1:])
    assert means["shortest"] < 0.6 * means["fcfs"]
