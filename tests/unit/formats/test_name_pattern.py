# SPDX-License-Identifier: Apache-2.0
"""Patterns of a config: the answers of ``re.match``, and never more than a moment."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.errors import CheckpointError
from linnet.formats.name_pattern import MAX_PATTERN_CHARACTERS, check_pattern, matches_name
from linnet.formats.quantization import read_quantization

LEAVES = st.sampled_from(
    [
        "a",
        "b",
        "1",
        ".",
        r"\.",
        r"\d",
        r"\w",
        "[ab]",
        "[^a]",
        "[]a]",
        r"[\]a-b]",
        "^",
        "$",
        r"\b",
        r"\Z",
        "_",
        r"\x61",
        "{",
    ]
)


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{,2}", "{2,}", "{0}", "{20}"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, repeats).map(lambda two: f"({two[0]}){two[1]}"),
        st.tuples(LEAVES, repeats).map("".join),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
        inner.map(lambda one: f"{one}|"),
    )


@settings(max_examples=400, deadline=None)
@given(pattern=st.recursive(LEAVES, _grow, max_leaves=6), name=st.text("ab1._", max_size=7))
def test_the_answers_are_those_of_re(pattern: str, name: str) -> None:
    try:
        expected = re.match(pattern, name) is not None
    except re.error:
        with pytest.raises(CheckpointError, match="not a regular expression"):
            matches_name(pattern, name)
        return
    assert matches_name(pattern, name) == expected


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"model\.layers\.(\d|1\d)\.mlp\.(?:up|down)_proj$", "model.layers.13.mlp.down_proj", True),
        (r".*(q|k|v|o)_proj", "model.layers.3.self_attn.q_proj", True),
        (r"^(?!.*vision).*_proj$", "vision.layers.0.up_proj", False),
        (r"(?P<layer>[0-9]+)\.up", "12.up", True),
        (r".*lm_head", "model.embed", False),
        ("a{}", "a{}", True),
        ("", "anything", True),
    ],
)
def test_patterns_as_they_are_published(pattern: str, name: str, expected: bool) -> None:
    assert matches_name(pattern, name) == expected == (re.match(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(a*)*b", "((a*)*)*b", ".*.*.*.*.*.*.*.*.*.*b", "a?" * 100 + "a" * 100 + "b", "(a|aa)+b",
     "(a|a)" * 60 + "b", "((a{0,99}){0,99}){0,99}b", "(?=(a+)+b)", "(((a?){999}){999}){999}b"],
)  # fmt: skip
@pytest.mark.parametrize("length", [60, 1024])
def test_what_would_backtrack_for_ever_does_not(pattern: str, length: int) -> None:
    started = time.thread_time()
    config = {"quantization_config": {"config_groups": {}, "ignore": [f"re:{pattern}"], "format": "dense"}}
    try:
        assert read_quantization(config, "c").scheme_of("a" * length) is None
    except CheckpointError as error:
        assert re.search(r"the pattern .* is refused: (it takes more than|its counts)", str(error))  # noqa: PT017
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a" * (MAX_PATTERN_CHARACTERS + 1), "1025 characters, at most 1024"),
        ("(", "not a regular expression"),
        ("a{99999999999999999999}", "counts multiply"),
        ("(?:a{100}){100}", "counts multiply to 10000"),
    ],
)
def test_what_is_not_accepted_is_said(pattern: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        check_pattern(pattern)
    config = {"quantization_config": {"config_groups": {}, "ignore": [f"re:{pattern}"], "format": "dense"}}
    with pytest.raises(CheckpointError, match=rf"c: quantization_config.ignore: .*{reason}"):
        read_quantization(config, "c")
