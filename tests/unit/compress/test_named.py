# SPDX-License-Identifier: Apache-2.0
"""The recipes that come with the package: each is whole, says when to use it, and runs."""

import re
from pathlib import Path

import msgspec
import pytest
from walking import FEW

from linnet.compress import compress, is_name, read_recipe, recipe_names, when_to_use
from linnet.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
SMALL = {"autoround": {"iterations": 4, "batch": 1}, "eora": {"rank": 2}}
"""Options that keep a test short, and a term smaller than 32 columns."""


def for_the_tiny_model(name: str):
    """The recipe on few rows; the tiny model's 32 columns take groups of 16 at most where a name says more."""
    recipe = msgspec.structs.replace(read_recipe(name), **FEW)
    steps = [
        msgspec.structs.replace(step, options=step.options | SMALL.get(step.algorithm, {})) for step in recipe.steps
    ]
    return msgspec.structs.replace(recipe, steps=tuple(steps))


@pytest.mark.parametrize("name", recipe_names())
def test_it_runs(name: str, tiny_model: Path, tmp_path: Path, text: str):
    result = compress(tiny_model, tmp_path / "out", for_the_tiny_model(name), calibration_text=text)
    assert result.output_bytes <= result.source_bytes
    assert len(result.layers) >= 14


@pytest.mark.parametrize("name", recipe_names())
def test_it_says_when_to_use_it(name: str):
    said = when_to_use(name)
    assert said.endswith(".")
    assert 40 < len(said) < 200
    assert re.fullmatch(r"[a-z0-9-]+", name)
    assert is_name(name)


def test_a_dozen():
    assert len(recipe_names()) >= 12


def test_an_unknown_name_is_met_with_the_names():
    with pytest.raises(
        ConfigError, match=r"recipe is 'smoth-w8a8'; accepted: .*w8a16; did you mean smooth-w8a8\?; or give"
    ):
        read_recipe("smoth-w8a8")


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("w4a16").write_text("scheme: NF4\nalgorithm: rtn\n")
    assert read_recipe("w4a16").scheme == "NF4"
    assert read_recipe(Path("w4a16")).scheme == "NF4"
