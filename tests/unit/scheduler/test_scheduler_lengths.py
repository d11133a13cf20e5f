# SPDX-License-Identifier: Apache-2.0
"""How long answers are expected to be, and that remembering them is bounded."""

import pytest

from linnet.scheduler import Request, SchedulerConfig
from linnet.scheduler.config import Lengths, Reserve
from linnet.scheduler.lengths import MOST_TENANTS, AnswerLengths
from linnet.scheduler.policies import policy_of
from linnet.scheduler.reservations import Reservations


def test_a_tenant_is_expected_to_go_on_as_it_did_and_a_stranger_as_everybody_does() -> None:
    lengths = AnswerLengths()
    assert lengths.expect(b"a") is None, "nothing is known yet"
    for _ in range(4):
        lengths.learn(b"a", 10)
        lengths.learn(b"b", 90)
    assert lengths.expect(b"stranger") == 50
    assert lengths.expect(b"a") == (10 + 50) / 2
    assert lengths.expect(b"b") == (90 + 50) / 2


def test_only_the_last_answers_count() -> None:
    lengths = AnswerLengths()
    for _ in range(lengths.EVERYBODY):
        lengths.learn(b"a", 1000)
    for _ in range(lengths.EVERYBODY):
        lengths.learn(b"a", 10)
    assert lengths.expect(b"a") == 10


def test_the_tenant_that_was_silent_the_longest_is_forgotten() -> None:
    lengths = AnswerLengths()
    for index in range(MOST_TENANTS):
        lengths.learn(index.to_bytes(4, "big"), 500)
    first, second, newest = (index.to_bytes(4, "big") for index in (0, 1, MOST_TENANTS))
    lengths.learn(first, 500)
    lengths.learn(newest, 500)
    for _ in range(lengths.EVERYBODY):
        lengths.learn(newest, 10)
    assert len(lengths) == MOST_TENANTS
    assert lengths.expect(second) == 10, "as everybody: nothing of its own is known"
    assert lengths.expect(first) == (500 + 10) / 2


def predicted_first(predict_length: Lengths) -> bytes:
    """Whose request comes first after tenant a's answers were short and b's long, though b may write less."""
    config = SchedulerConfig(num_blocks=64, max_model_len=512, policy="shortest", predict_length=predict_length)
    policy = policy_of(config)

    def request(request_id: int, tenant: bytes, most: int) -> Request:
        return Request(request_id=request_id, prompt_token_ids=(1,), max_new_tokens=most, tenant=tenant)

    for index in range(8):
        for tenant, length in ((b"a", 2), (b"b", 80)):
            one = request(2 * index + (tenant == b"b"), tenant, 100)
            policy.added(one)
            one.known += [7] * length
            one.finish_reason = "stop"
            policy.ended(one)
    requests = [request(100, b"a", 100), request(101, b"b", 90)]
    for one in requests:
        policy.added(one)
    return min(requests, key=policy.key).tenant


def test_beams_are_no_answers_to_learn_from() -> None:
    config = SchedulerConfig(num_blocks=64, max_model_len=512, policy="shortest")
    policy = policy_of(config)
    for index in range(4):
        beam = Request(request_id=index, prompt_token_ids=(1,), max_new_tokens=100, tenant=b"a", gang=0)
        policy.added(beam)
        beam.known += [7] * 90
        beam.finish_reason = "stop"
        policy.ended(beam)
    assert policy._answers._past.expect(b"a") is None  # type: ignore[attr-defined]


def test_past_lengths_are_used_unless_the_limit_is_to_count() -> None:
    assert predicted_first("past") == b"a"
    assert predicted_first("limit") == b"b"


def windows_of(reserve: Reserve) -> tuple[Reservations, Request]:
    """A request that may write 100 tokens, of a tenant whose answers had 10; a block holds 4."""
    windows = Reservations(reserve, 4)
    for index in range(4):
        past = Request(request_id=index, prompt_token_ids=(1,), max_new_tokens=100, tenant=b"a")
        past.known += [7] * 10
        past.finish_reason = "stop"
        windows.ended(past)
    request = Request(request_id=9, prompt_token_ids=(1, 2, 3), max_new_tokens=100, tenant=b"a")
    return windows, request


@pytest.mark.parametrize(("reserve", "ahead"), [("none", 0), ("past", 3), ("limit", 25)])
def test_a_window_is_what_the_answer_is_expected_to_need(reserve: Reserve, ahead: int) -> None:
    windows, request = windows_of(reserve)
    assert windows.ahead(request) == ahead
    assert windows.of_running([request, request]) == 2 * max(ahead, 1)
    windows.ended(request)


def test_a_window_grows_when_the_answer_goes_on() -> None:
    windows, request = windows_of("past")
    ends = []
    for _ in range(100):
        request.known.append(7)
        ends.append(windows.ahead(request) + -(-len(request.known) // 4))
    assert set(ends[:9]) == {4}, "prompt and ten tokens"
    assert ends[9:50] == [-(-(3 + 2 * got) // 4) for got in range(10, 51)], "twice what it has"
    assert set(ends[50:]) == {26}, "the 100 that it may have"


def test_where_nothing_is_known_a_window_is_what_an_answer_has() -> None:
    request = Request(request_id=9, prompt_token_ids=(1, 2, 3), max_new_tokens=100, tenant=b"a")
    windows = Reservations("past", 4)
    assert windows.ahead(request) == 0
    request.known += [7] * 20
    assert windows.ahead(request) == 5
