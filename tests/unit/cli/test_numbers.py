# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them."""

import pytest
import typer

from linnet.cli.numbers import human_bytes, human_duration, parse_budget, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("32k", 32_000), ("1.5k", 1500), ("2M", 2 << 20), ("2m", 2_000_000), ("32K", 32_768), (7, 7)],
)
def test_counts(text: str | int, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 10**8), ("6GiB", 6 << 30), ("4.5bits", 562_500), ("4 bits", 500_000), ("1bit", 125_000)],
)
def test_budgets(text: str, size: int) -> None:
    """Of a model of a million parameters."""
    assert parse_budget(text).bytes_for(10**6) == size
    assert parse_budget(parse_budget(text)) == parse_budget(text)


@pytest.mark.parametrize("text", ["0", "0bits", "lots", "4.5bit/s", "-1bits"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"a size such as 100MB, or 4\.5bits"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("800MB", 800 * 10**6),
        ("6GiB", 6 * 2**30),
        ("6 gib", 6 * 2**30),
        ("6G", 6 * 2**30),
        ("6g", 6 * 10**9),
        ("800mb", 800 * 10**6),
        ("12", 12),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.2345", "3 apples", "1e9", "nan"])
def test_what_is_not_a_count_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"4096 or 32k|whole number"):
        parse_count(text)


def test_people_read_sizes_and_times() -> None:
    assert [human_bytes(n) for n in (0, 999, 9_281_536, 2_472_000_000)] == ["0 B", "999 B", "9.28 MB", "2.47 GB"]
    assert [human_duration(s) for s in (8.4, 200, 3900)] == ["8 s", "3 min 20 s", "1 h 05 min"]
