# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and tables of bench/samples.py."""

import math
from typing import Any

import pytest

from samples import METRICS, best_peers, compare, comparison_rows, markdown, ratios, significant, summarise

SIDES = ("ours", "theirs")


def record(theirs: str, number: int, side: str, metric: str, value: float, clean: bool = True) -> dict[str, Any]:
    return {
        "ours": "W4A16-head8",
        "theirs": theirs,
        "measure": "x",
        "round": number,
        "side": side,
        "values": {metric: value},
        "clean": clean,
    }


def test_a_summary_shows_its_range_only_where_there_is_one() -> None:
    assert summarise([3.0, 1.0, 2.0]).show() == "2.00 [1.00-3.00]"
    assert summarise([1234.5]).show() == "1,234"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (48.13, "48.1"), (0.00123, "0.00123"), (99999.0, "99,999"), (1.0, "1.00")]
)
def test_three_digits_that_mean_something(value: float, shown: str) -> None:
    assert significant(value).removesuffix(".0") == shown


def test_not_a_number_is_shown_as_such() -> None:
    assert significant(math.nan) == "nan"


def test_a_ratio_above_one_always_favours_linnet() -> None:
    assert ratios([60.0, 50.0], [30.0, 50.0], higher_is_better=True) == [2.0, 1.0]
    assert ratios([0.5], [1.0], higher_is_better=False) == [2.0]


def test_only_rounds_that_both_sides_have_are_compared() -> None:
    rate = "decode_tokens_per_s"
    records = [record("a", i, "ours", rate, 10.0 * (i + 1)) for i in range(3)]
    records += [record("a", 0, "theirs", rate, 5.0), record("a", 2, "theirs", rate, 10.0)]
    (found,) = compare(records)
    assert (found.ratio.median, found.ratio.low, found.ratio.high, found.ratio.count) == (2.5, 2.0, 3.0, 2)
    assert found.our_values.median == 20.0
    assert found.clean


def test_a_repeated_round_replaces_the_first_and_disturbance_is_told() -> None:
    rate = "decode_tokens_per_s"
    records = [record("a", 0, "ours", rate, 1.0), record("a", 0, "ours", rate, 6.0)]
    records.append(record("a", 0, "theirs", rate, 3.0, clean=False))
    (found,) = compare(records)
    assert found.ratio.median == 2.0
    assert not found.clean
    assert comparison_rows([found], lambda one: one.theirs)[0][-1] == "2.00 (disturbed)"


def test_disturbed_rounds_count_only_where_there_is_no_other() -> None:
    rate = "decode_tokens_per_s"
    records = [record("a", i, side, rate, 1.0 + i * (side == "ours"), clean=i != 1) for i in range(3) for side in SIDES]
    (found,) = compare(records)
    assert (found.ratio.median, found.ratio.count, found.clean) == (2.0, 2, True)


def test_the_best_peer_is_the_one_that_makes_linnet_look_worst() -> None:
    records = []
    for theirs, value in (("slow", 1.0), ("fast", 4.0)):
        records += [record(theirs, 0, "ours", "prefill_tokens_per_s", 8.0)]
        records += [record(theirs, 0, "theirs", "prefill_tokens_per_s", value)]
    (best,) = best_peers(compare(records))
    assert (best.theirs, best.ratio.median) == ("fast", 2.0)


def test_rows_are_scaled_to_their_unit() -> None:
    records = [record("a", 0, side, "peak_rss_bytes", 800e6) for side in ("ours", "theirs")]
    (row,) = comparison_rows(compare(records), lambda one: "name")
    assert row == ["name", f"{METRICS['peak_rss_bytes'].label} (MB)", "800", "800", "1.00"]


def test_a_table_is_markdown() -> None:
    assert markdown(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
