# SPDX-License-Identifier: Apache-2.0
"""bench/recall.py: only the asked fact moves; and on the bundled model no cache loses any of them."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from linnet import demo
from linnet.api import LLM
from recall import Fact, _facts, measured


def arguments(**changed) -> argparse.Namespace:
    return argparse.Namespace(**({"model": demo.model_directory(), "facts": 12} | changed))


def test_a_fact_is_moved_among_the_others() -> None:
    fact = Fact(("Report, number 4.", "Max has it.", "Bo has that.", "Kit ran.", "Una has one."), 2, 1, "\nWho?", " Bo")
    head, tail = "Report, number 4.", "\nWho?"
    assert fact.at(0) == f"{head} Bo has that. Max has it. Kit ran. Una has one.{tail}"
    assert fact.at(0.5) == f"{head} Max has it. Kit ran. Bo has that. Una has one.{tail}"
    assert fact.at(1) == f"{head} Max has it. Kit ran. Una has one. Bo has that.{tail}"


@pytest.mark.parametrize(("own", "least"), [(True, 100), (False, 15)])
def test_questions_are_about_one_sentence_that_holds_the_answer(tmp_path: Path, own: bool, least: int) -> None:
    found = list(_facts(arguments() if own else arguments(model=tmp_path)))
    assert len(found) >= least
    for fact in found:
        assert fact.answer.strip() in fact.sentences[fact.asked]
        assert fact.first <= fact.asked
        assert all(fact.sentences[fact.asked] in fact.at(place) for place in np.linspace(0, 1, 5))
        assert {len(fact.at(place)) for place in np.linspace(0, 1, 5)} == {len(fact.at(0))}


@pytest.mark.slow
def test_the_bundled_model_recalls_from_everywhere_with_every_cache() -> None:
    """Right at every position, and an answer no less likely than by a hundredth of a nat."""
    settings = {"policy": "exact", "max_model_len": 1024, "max_sequences": 4, "num_blocks": 260, "prefix_cache": False}
    facts = list(_facts(arguments()))[:8]
    with LLM(demo.model_directory(), **settings) as reference:
        for element in ("int8", "fp8_e4m3", "int4"):
            ours, theirs = measured(reference, demo.model_directory(), element, facts, [0, 0.5, 1], settings)
            assert theirs[:, 1].all()
            assert ours[:, 1].all(), element
            lost = theirs[:, 0] - ours[:, 0]
            assert 0 < np.abs(lost).max() < 0.01, element
