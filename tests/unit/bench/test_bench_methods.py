# SPDX-License-Identifier: Apache-2.0
"""The table of methods: every method is there once and can be built; the pages are what the rows say."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="compressing needs torch")

import methods
from linnet.compress import recipe_names
from linnet.compress.steps import build_steps
from linnet.compress.tables import ALGORITHMS
from methods_page import DOCS, methods_page, recipes_page

ROW = {
    "key": "k",
    "model": "tiny",
    "method": "recipe w4a16",
    "calibration": [16, 512],
    "bytes": 2_882_608,
    "original_bytes": 7_930_000,
    "bits_per_weight": 5.8,
    "perplexity": 3.21,
    "original_perplexity": 3.2,
    "kl": [0.0021, 0.0019, 0.0024],
    "kl_p99": 0.03,
    "noise_floor": 1e-4,
    "tokens": 4096,
    "abilities": 8,
    "worse": ["recall"],
    "seconds": 12.3,
    "cpu_seconds": 20.4,
    "peak_bytes": 4e8,
    "decode_ratio": 1.25,
}


def test_every_method_is_there_once_and_can_be_built():
    every = methods.every_method()
    assert len({method.name for method in every}) == len(every)
    used = {(step.step, step.algorithm) for method in every for step in method.recipe.steps}
    for method in every:
        build_steps(method.recipe)
    assert {name for kind, name in used if kind == "quantise"} >= {"rtn", "gptq", "awq", "hqq", "autoround"}
    assert {name for kind, name in used if kind == "sparsify"} == set(ALGORITHMS["sparsify"])
    assert {f"recipe {name}" for name in recipe_names()} <= {method.name for method in every}


def test_a_row_is_found_again(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW | {"bytes": 1}, ROW | {"key": "other"})))
    rows = methods.read_rows(path)
    assert [(key, row["bytes"]) for key, row in rows.items()] == [("k", 1), ("other", 2_882_608)]
    assert methods.read_rows(tmp_path / "none") == {}


def test_pages_show_the_rows():
    page = methods_page([ROW])
    assert "| recipe w4a16 | 2.88 | 5.80 | 3.21 | 0.0021 [0.0019, 0.0024] | 0.03 |" in page
    assert "| 1 of 8 | 12 | 20 | 400 | 1.25 × |" in page
    busy = {key: value for key, value in ROW.items() if key != "decode_ratio"} | {"seconds": None}
    assert "| 1 of 8 | – | 20 | 400 | – |" in methods_page([busy])
    assert "noise floor 1.0e-04; calibrated on 16 rows of 512 tokens." in page
    recipes = recipes_page([ROW])
    assert "| tiny | 2.88 | 36% | 0.0021 [0.0019, 0.0024] | 1.25 × |" in recipes
    assert all(f"## {name}\n" in recipes for name in recipe_names())


def test_the_pages_are_what_the_stored_rows_say():
    rows = list(methods.read_rows().values())
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == methods_page(rows)
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == recipes_page(rows)
