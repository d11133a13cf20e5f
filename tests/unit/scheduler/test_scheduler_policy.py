# SPDX-License-Identifier: Apache-2.0
"""Orders, and the list that keeps them."""

import pytest

from linnet.scheduler import InvariantError, Request
from linnet.scheduler.config import Policy
from linnet.scheduler.policy import OrderedRequests, ordering_key


def request(request_id: int, arrival_s: float, priority: int) -> Request:
    one = Request(
        request_id=request_id, prompt_token_ids=(1,), max_new_tokens=1, arrival_s=arrival_s, priority=priority
    )
    one.sequence = request_id
    return one


REQUESTS = [request(0, 3.0, 0), request(1, 1.0, 2), request(2, 2.0, 2), request(3, 1.0, 1), request(4, 1.0, 2)]


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [1, 3, 4, 2, 0]), ("priority", [0, 3, 1, 4, 2])])
def test_order(policy: Policy, order: list[int]) -> None:
    ordered = OrderedRequests(ordering_key(policy))
    for one in REQUESTS:
        ordered.insert(one)
    assert [one.request_id for one in ordered] == order
    assert [one.request_id for one in reversed(ordered)] == order[::-1]
    assert ordered[0].request_id == order[0]


def test_remove_takes_exactly_the_request() -> None:
    ordered = OrderedRequests(ordering_key("fcfs"))
    for one in REQUESTS:
        ordered.insert(one)
    ordered.remove(REQUESTS[3])
    assert [one.request_id for one in ordered] == [1, 4, 2, 0]
    assert len(ordered) == 4
    with pytest.raises(InvariantError, match="request 3"):
        ordered.remove(REQUESTS[3])
