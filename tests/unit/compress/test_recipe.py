# SPDX-License-Identifier: Apache-2.0
"""Recipes: forbidden keys, helpful errors, a digest that means equality."""

from pathlib import Path

import pytest

from linnet.compress import Recipe, make_recipe, read_recipe, recipe_from
from linnet.errors import ConfigError

YAML = """
scheme: W4A16-g32
algorithm: gptq
options: {damping: 0.02}
group_size: auto
rules:
  - {match: "re:.*down_proj", scheme: W8A16}
  - {match: lm_head, scheme: dense}
calibration_rows: 16
seed: 7
"""


def test_yaml_and_plain_call_give_the_same_recipe(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    read = read_recipe(path)
    rules = [{"match": "re:.*down_proj", "scheme": "W8A16"}, {"match": "lm_head", "scheme": "dense"}]
    made = make_recipe(
        "W4A16-g32", options={"damping": 0.02}, group_size="auto", rules=rules, calibration_rows=16, seed=7
    )
    assert read == made
    assert read.digest() == made.digest()
    assert read.digest() != make_recipe("W4A16-g32").digest()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"scheme": "W4A16", "sheme": 1},
            "there is no key 'sheme'; known keys: scheme, algorithm, options",
        ),
        ({"algorithm": "rtn"}, "the key 'scheme' is missing; known keys: scheme"),
        ({"scheme": "W4A16", "rules": [{"match": "x", "scheme": "W8A16", "bits": 3}]}, "known keys: match, scheme"),
        ({"scheme": "W4A16", "group_size": "automatic"}, "group_size"),
        ({"scheme": "W4A16", "group_size": 0}, "group_size is 0; accepted is 1 or more"),
        ({"scheme": "W4A16", "calibration_rows": -1}, "calibration_rows is -1; accepted is 1 or more"),
        ({"scheme": "W4A16", "calibration_rows": "many"}, "calibration_rows"),
        ({"scheme": "W4A16", "format_version": 2}, "format_version 2 is unknown"),
    ],
)
def test_a_wrong_recipe_says_what_is_accepted(record, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from(record)


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("- 1", "must be a mapping"), (None, "read")]
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_is_frozen():
    with pytest.raises(AttributeError):
        Recipe(scheme="W4A16").seed = 3  # type: ignore[misc]
