# SPDX-License-Identifier: Apache-2.0
"""The two-counter request: what ends it, and which rows it wants logits for."""

import pytest

from linnet.scheduler import Request, Sample, Score, Verify


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


def test_only_the_last_known_row_is_sampled() -> None:
    one = request()
    assert one.uses(5) == (Sample(4),)
    assert one.uses(4) == ()
    one.append(7)
    one.computed = 5
    assert one.uses(1) == (Sample(0),)


def test_scoring_wants_every_prompt_token_once() -> None:
    one = request(score_prompt=True)
    assert one.uses(5) == (Score(0, (1, 2, 3, 4)), Sample(4))
    assert one.uses(3) == (Score(0, (1, 2, 3)),)
    one.scored = 3  # three rows were delivered, then came a preemption
    assert one.uses(2) == ()
    assert one.uses(5) == (Score(3, (4,)), Sample(4))
    one.scored, one.computed = 5, 0
    one.append(7)
    assert one.uses(5) == ()
    assert one.uses(6) == (Sample(5),)
    assert request(5, 0, score_prompt=True).uses(5) == (Score(0, (1, 2, 3, 4)),)


@pytest.mark.parametrize(("scored", "computed", "rows", "n"), [(0, 0, 2, 2), (3, 0, 1, 4), (3, 3, 1, 1), (0, 0, 9, 5)])
def test_scores_fit_into_the_output_rows(scored: int, computed: int, rows: int, n: int) -> None:
    one = request(score_prompt=True)
    one.scored, one.computed = scored, computed
    assert one.tokens_within_rows(one.remaining, rows) == n
    assert sum(use.rows for use in one.uses(n)) <= rows


def test_a_prompt_that_is_only_scored_needs_no_row_for_its_last_token() -> None:
    assert request(5, 0, score_prompt=True).tokens_within_rows(5, 4) == 5
    assert request(5, 0, score_prompt=True).tokens_within_rows(5, 3) == 3


def test_guesses_follow_the_last_known_token_as_far_as_they_are_of_use() -> None:
    one = request(5, 3)
    one.draft_token_ids = (11, 12, 13)
    assert one.drafts_within(4, 9) == (), "the prompt goes on"
    assert one.drafts_within(5, 9) == (11, 12), "the third new token is never computed"
    assert one.drafts_within(5, 1) == (11,)
    assert one.drafts_within(5, -1) == ()
    assert one.uses(5, (11, 12)) == (Verify(4, (11, 12)),)
    assert Verify(4, (11, 12)).rows == Verify(4, (11, 12)).most_tokens == 3


def test_without_scoring_rows_do_not_limit() -> None:
    assert request().tokens_within_rows(5, 1) == 5
