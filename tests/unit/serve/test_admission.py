# SPDX-License-Identifier: Apache-2.0
"""The bounded queue counts everything, and gives everything back."""

import random

import pytest

from linnet.serve.admission import Admission, Ticket
from linnet.serve.config import QueueLimits
from linnet.serve.errors import ApiError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def held(admission: Admission) -> tuple[int, int, int, int]:
    return admission.requests, admission.samples, admission.prompt_tokens, admission.body_bytes


def test_a_ticket_comes_back_when_the_handler_and_every_sample_are_done() -> None:
    admission = Admission(QueueLimits(samples=4))
    ticket = admission.enter()
    ticket.charge(100)
    ticket.take(2, 50)
    assert held(admission) == (1, 2, 50, 100)
    ticket.leave()
    assert held(admission) == (1, 2, 50, 100)
    ticket.sample_done()
    ticket.leave()
    assert held(admission) == (1, 1, 50, 100)
    ticket.sample_done()
    assert held(admission) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("samples", "tokens", "reason"), [(4, 1, "requests"), (1, 90, "prompt tokens")], ids=["samples", "tokens"]
)
def test_a_full_queue_refuses_and_changes_nothing(samples: int, tokens: int, reason: str) -> None:
    reasons: list[str] = []
    admission = Admission(QueueLimits(samples=4, prompt_tokens=100, body_bytes=10), on_reject=reasons.append)
    first = admission.enter()
    first.take(1, 50)
    second = admission.enter()
    before = held(admission)
    with pytest.raises(ApiError) as caught:
        second.take(samples, tokens)
    assert caught.value.status == 429
    assert reasons == [reason]
    assert held(admission) == before
    with pytest.raises(ApiError):
        second.charge(11)
    second.leave()
    assert held(admission) == (1, 1, 50, 0)


def test_what_no_empty_queue_could_hold_is_a_bad_request() -> None:
    admission = Admission(QueueLimits(samples=4, prompt_tokens=100))
    for samples, tokens, param in ((5, 1, "n"), (1, 101, "messages")):
        with pytest.raises(ApiError) as caught:
            admission.enter().check(samples, tokens, ("n", "messages"))
        assert caught.value.status == 400
        assert caught.value.param == param


def test_a_closed_queue_answers_503() -> None:
    admission = Admission(QueueLimits(samples=4))
    ticket = admission.enter()
    admission.close("the server is shutting down")
    for refused in (admission.enter, lambda: ticket.take(1, 1)):
        with pytest.raises(ApiError) as caught:
            refused()
        assert caught.value.status == 503
        assert caught.value.headers["Retry-After"]


def test_retry_after_follows_the_pace_within_its_bounds() -> None:
    clock = Clock()
    admission = Admission(QueueLimits(samples=1000), clock)
    assert admission.retry_after_s() == 1
    admission.enter().take(1000, 0)
    for _ in range(64):
        clock.now += 0.1
        admission.finished()
    assert 8 <= admission.retry_after_s() <= 12  # a tenth of 1000 at 10 a second
    clock.now += 1e6
    assert admission.retry_after_s() == 120


def test_idleness_does_not_count_as_a_slow_pace() -> None:
    clock = Clock()
    admission = Admission(QueueLimits(samples=1000), clock)
    first = admission.enter()
    first.take(64, 0)
    for _ in range(64):
        clock.now += 0.1
        first.sample_done()
    clock.now += 3600
    second = admission.enter()
    second.take(1000, 0)
    assert admission.retry_after_s() == 1
    for _ in range(20):
        clock.now += 0.1
        second.sample_done()
    assert 8 <= admission.retry_after_s() <= 12


def test_random_lives_leave_nothing() -> None:
    rng = random.Random(5)
    admission = Admission(QueueLimits(samples=30, prompt_tokens=500, body_bytes=5000))
    open_tickets: list[tuple[Ticket, int]] = []
    for _ in range(3000):
        if rng.random() < 0.5:
            try:
                ticket = admission.enter()
            except ApiError:
                continue
            samples = 0
            try:
                ticket.charge(rng.randrange(600))
                samples = rng.randrange(1, 6)
                ticket.take(samples, rng.randrange(60))
            except ApiError:
                ticket.leave()
                continue
            open_tickets.append((ticket, samples))
        elif open_tickets:
            ticket, samples = open_tickets.pop(rng.randrange(len(open_tickets)))
            if rng.random() < 0.5:
                ticket.leave()
            for _ in range(samples):
                ticket.sample_done()
            ticket.leave()
        assert admission.samples <= 30
        assert admission.prompt_tokens <= 500
        assert admission.body_bytes <= 5000
    for ticket, samples in open_tickets:
        ticket.leave()
        for _ in range(samples):
            ticket.sample_done()
    assert held(admission) == (0, 0, 0, 0)
