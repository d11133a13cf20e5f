# SPDX-License-Identifier: Apache-2.0
"""Windows over a text: every token scored once, with enough context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.errors import ConfigError
from linnet.evals import OwnEvaluationText
from linnet.evals.text_loss import document_windows, windows
from linnet.text import OwnDocument, OwnText


@given(st.integers(2, 400), st.integers(2, 64), st.integers(1, 64))
def test_every_token_after_the_first_is_scored_exactly_once(count: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    cut = windows(list(range(count)), context, stride)
    scored = [token for row, start in zip(cut.rows, cut.starts, strict=True) for token in row[start:]]
    assert scored == list(range(1, count))
    assert cut.scored_tokens == count - 1
    for row, start in zip(cut.rows[1:], cut.starts[1:], strict=True):
        assert start >= min(max(context - stride, 1), len(row) - 1)
        assert len(row) <= context


def test_max_tokens_counts_scored_tokens() -> None:
    assert windows(list(range(1000)), 64, 32, max_tokens=100).scored_tokens == 100


@pytest.mark.parametrize(("context", "stride"), [(64, 0), (64, 65), (1, 1)])
def test_impossible_strides_are_refused(context: int, stride: int) -> None:
    with pytest.raises(ConfigError, match=r"stride|context"):
        windows(list(range(10)), context, stride)


def test_a_text_of_one_token_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        windows([1], 64, 32)


def test_no_window_crosses_documents() -> None:
    documents = [list(range(100, 150)), [7], list(range(200, 210)), list(range(300, 400))]
    cut = document_windows(documents, 32, 16, max_tokens=70)
    assert all(row[-1] - row[0] == len(row) - 1 for row in cut.rows)
    scored = [token for row, start in zip(cut.rows, cut.starts, strict=True) for token in row[start:]]
    assert scored == [*range(101, 150), *range(201, 210), *range(301, 313)]


def test_documents_without_a_second_token_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="too short"):
        document_windows([[1], []], 64, 32)


def test_given_tokens_are_read_and_never_scored() -> None:
    cut = document_windows([range(10), range(3), range(8)], 8, 4, given=[6, 3, 2])
    scored = [row[start:] for row, start in zip(cut.rows, cut.starts, strict=True)]
    assert scored == [(6, 7), (8, 9), (2, 3, 4, 5, 6, 7)]
    assert cut.rows[0] == tuple(range(8))
    late = document_windows([range(20)], 8, 4, given=[15])
    assert [row[start:] for row, start in zip(late.rows, late.starts, strict=True)] == [(15,), (16, 17, 18, 19)]
    few = document_windows([range(10), range(8)], 8, 8, max_tokens=3, given=[6, 2])
    assert few.scored_tokens == 3


def test_own_text_is_written_once_the_windows_are_known() -> None:
    asked: list[tuple[int, int]] = []

    def write(rows: int, length: int) -> OwnText:
        asked.append((rows, length))
        return OwnText(tuple(OwnDocument(tuple(range(length)), 3) for _ in range(rows)), length, 0, True, 0)

    text = OwnEvaluationText("original", write)
    with pytest.raises(ConfigError, match="stride"):
        text.cut(None, 8, 9, 20)
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        text.cut(None, 8, 4, 0)
    assert asked == []
    cut = text.cut(None, 8, 4, 20)
    assert asked == [(3, 8)]
    assert cut.starts == (3, 3, 3)
    assert cut.scored_tokens == 15
    assert text.name == "the original's own text (every second row a chat, seed 0)"
    assert text.sha256 == write(3, 8).digest
