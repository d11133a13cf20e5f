# SPDX-License-Identifier: Apache-2.0
"""Recipes: forbidden keys, helpful errors, a digest that means equality."""

from pathlib import Path

import pytest

from linnet.compress import make_recipe, read_recipe, recipe_from
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


QUANTISE = {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"}
SMOOTH = {"step": "smooth", "algorithm": "smoothquant"}
ROTATE = {"step": "rotate", "algorithm": "quarot"}


def test_version_one_is_one_step():
    one = recipe_from({"scheme": "W8A8", "algorithm": "rtn", "format_version": 1, "seed": 3})
    assert one == recipe_from({"steps": [QUANTISE], "seed": 3})
    assert one.digest() == recipe_from({"format_version": 2, "steps": [QUANTISE], "seed": 3}).digest()
    assert (one.name, one.scheme, one.format_version) == ("rtn", "W8A8", 2)


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
        ({"scheme": "W4A16", "format_version": 3, "steps": [QUANTISE]}, "there is no key 'scheme'; known keys: steps"),
        ({"format_version": 3, "steps": [QUANTISE]}, "format_version 3 is unknown; this version reads 1 and 2"),
        ({"scheme": "W4A16", "format_version": 2}, "no key 'scheme'|key 'steps' is missing"),
        ({"scheme": "W4A16", "algorithm": "magic"}, "algorithm is 'magic'; accepted: rtn, gptq"),
        ({"steps": []}, "no quantise step, so nothing would be compressed; possible are"),
        ({"steps": [QUANTISE, QUANTISE]}, "two quantise steps, and a weight gets its codes once"),
        ({"steps": [QUANTISE, SMOOTH]}, r"step 2 \(smooth\) comes after quantise, which leaves codes"),
        (
            {"steps": [SMOOTH, ROTATE, QUANTISE]},
            r"step 2 \(rotate\) comes after smooth, .* in this order, any",
        ),
        ({"steps": [SMOOTH]}, "no quantise step"),
        ({"steps": [SMOOTH | {"scheme": "W8A8"}, QUANTISE]}, r"step 1 \(smooth\): scheme and group_size belong to"),
        ({"steps": [SMOOTH | {"rules": [{"match": "x", "scheme": "W8A8"}]}, QUANTISE]}, "belong to a quantise step"),
        ({"steps": [{"step": "quantise", "algorithm": "rtn"}]}, r"step 1 \(quantise\): the key 'scheme' is missing"),
        ({"steps": [QUANTISE | {"rules": [{"match": "x"}]}]}, "the rule 'x' decides nothing; give it a scheme or opt"),
        ({"steps": [QUANTISE | {"bits": 4}]}, "steps.0.: there is no key 'bits'; known keys: step, algorithm"),
        ({"steps": [QUANTISE | {"rules": [{"match": "x", "bits": 4}]}]}, "known keys: match, scheme, options"),
        ({"steps": [{"step": "distil", "algorithm": "x"}, QUANTISE]}, "distil"),
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
        make_recipe("W4A16").seed = 3  # type: ignore[misc]
