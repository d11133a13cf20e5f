# SPDX-License-Identifier: Apache-2.0
"""Orders, and the list that keeps them."""

import pytest

from linnet.scheduler import InvariantError, Request
from linnet.scheduler.policies import FirstComeFirstServed, Priority
from linnet.scheduler.policy import OrderedRequests, OrderingPolicy


def request(request_id: int, arrival_s: float, priority: int) -> Request:
    one = Request(
        request_id=request_id, prompt_token_ids=(1,), max_new_tokens=1, arrival_s=arrival_s, priority=priority
    )
    one.sequence = request_id
    return one


REQUESTS = [request(0, 3.0, 0), request(1, 1.0, 2), request(2, 2.0, 2), request(3, 1.0, 1), request(4, 1.0, 2)]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (FirstComeFirstServed(), [1, 3, 4, 2, 0]),
        (Priority(None), [0, 3, 1, 4, 2]),
        (Priority(1.9), [3, 0, 1, 4, 2]),
        (Priority(0.1), [3, 1, 4, 2, 0]),
    ],
)
def test_order(policy: OrderingPolicy, order: list[int]) -> None:
    ordered = OrderedRequests(policy.key)
    for one in REQUESTS:
        ordered.insert(one)
    assert [one.request_id for one in ordered] == order
    assert [one.request_id for one in reversed(ordered)] == order[::-1]
    assert ordered[0].request_id == order[0]


def test_remove_takes_exactly_the_request() -> None:
    ordered = OrderedRequests(FirstComeFirstServed().key)
    for one in REQUESTS:
        ordered.insert(one)
    ordered.remove(REQUESTS[3])
    assert [one.request_id for one in ordered] == [1, 4, 2, 0]
    assert len(ordered) == 4
    with pytest.raises(InvariantError, match="request 3"):
        ordered.remove(REQUESTS[3])


class Shuffled(OrderingPolicy):
    """Keys that change while requests are inside."""

    def __init__(self) -> None:
        self.keys = {one.request_id: (float(one.request_id),) for one in REQUESTS}

    def key(self, request: Request) -> tuple[float, ...]:
        return self.keys[request.request_id]


def test_keys_that_change_count_when_the_list_is_put_in_order() -> None:
    policy = Shuffled()
    ordered = OrderedRequests(policy.key)
    for one in REQUESTS[:4]:
        ordered.insert(one)
    policy.keys[0], policy.keys[2] = (9.0,), (-1.0,)
    assert [one.request_id for one in ordered] == [0, 1, 2, 3]
    ordered.remove(REQUESTS[1])
    assert [one.request_id for one in ordered] == [0, 2, 3], "found where it is, whatever its key would be now"
    ordered.reorder()
    assert [one.request_id for one in ordered] == [2, 3, 0]
    assert ordered.key_of(REQUESTS[0]) == (9.0,)
