# SPDX-License-Identifier: Apache-2.0
"""The two-counter request: what ends it, and which rows it wants logits for."""

import pytest

from linnet.scheduler import Request


def request(prompt: int = 5, new: int = 3, **fields: object) -> Request:
    return Request(request_id=1, prompt_token_ids=tuple(range(prompt)), max_new_tokens=new, **fields)  # type: ignore


def test_counters() -> None:
    one = request()
    assert (one.prompt_tokens, one.generated_tokens, one.remaining, one.most_slots) == (5, 0, 5, 7)
    assert one.append(40) is None
    assert (one.generated_token_ids, one.remaining) == ((40,), 6)
    assert one.prompt_token_ids == (0, 1, 2, 3, 4)
    assert request(5, 0, score_prompt=True).most_slots == 5
    assert request(5, 1).most_slots == 5


def test_length_and_stop() -> None:
    one = request(stop_token_ids=frozenset({9}))
    assert [one.append(1), one.append(2), one.append(3)] == [None, None, "length"]
    two = request(stop_token_ids=frozenset({9}))
    assert [two.append(1), two.append(9)] == [None, "stop"]
    three = request(new=1, stop_token_ids=frozenset({9}))
    assert three.append(9) == "stop", "a stop token in the last place is a stop"


def test_a_stop_token_counts_once_enough_tokens_precede_it() -> None:
    one = request(new=4, stop_token_ids=frozenset({9}), min_new_tokens=2)
    assert [one.append(9), one.append(9), one.append(9)] == [None, None, "stop"]


def test_only_the_last_known_row_is_an_output_row() -> None:
    one = request()
    assert one.output_offsets(5) == (4,)
    assert one.output_offsets(4) == ()
    one.append(7)
    one.computed = 5
    assert one.output_offsets(1) == (0,)


def test_scoring_wants_every_prompt_row_once() -> None:
    one = request(score_prompt=True)
    assert one.output_offsets(5) == (0, 1, 2, 3, 4)
    assert one.output_offsets(3) == (0, 1, 2)
    one.scored = 3  # three rows were delivered, then came a preemption
    assert one.output_offsets(2) == ()
    assert one.output_offsets(5) == (3, 4)
    one.scored, one.computed = 5, 0
    one.append(7)
    assert one.output_offsets(5) == ()
    assert one.output_offsets(6) == (5,)


@pytest.mark.parametrize(("scored", "computed", "rows", "n"), [(0, 0, 2, 2), (3, 0, 1, 4), (3, 3, 1, 1), (0, 0, 9, 5)])
def test_scores_fit_into_the_output_rows(scored: int, computed: int, rows: int, n: int) -> None:
    one = request(score_prompt=True)
    one.scored, one.computed = scored, computed
    assert one.tokens_within_rows(one.remaining, rows) == n
    assert len(one.output_offsets(n)) <= rows


def test_without_scoring_rows_do_not_limit() -> None:
    assert request().tokens_within_rows(5, 1) == 5
