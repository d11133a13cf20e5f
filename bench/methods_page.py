# SPDX-License-Identifier: Apache-2.0
"""docs/methods.md and docs/recipes.md, made of the rows of methods.py. No clocks, no models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linnet.compress import recipe_names, when_to_use
from samples import markdown

DOCS = Path(__file__).resolve().parents[1] / "docs"
Row = Mapping[str, Any]

METHODS_HEAD = """# What every method costs

Made by `python bench/methods.py` from the rows in `bench/results/methods.jsonl`; do not edit. Every row is one
compression in a process of its own, compared with the original in the arithmetic that serves (`fast`).

* *MB*: all tensors. *bits*: everything stored, per parameter of the model; embedding and head stay dense unless the
  name says otherwise, so that small models show more bits than their scheme's name.
* *perplexity* and *KL* (mean with its 95 % interval, 99th percentile; nats per token) on text that nobody calibrated
  on.
* *worse*: abilities that are significantly worse (McNemar's exact test, Holm-adjusted), of those asked; – where none
  were.
* *s*, *CPU s*, *peak MB*: of the compression on a shared machine with two cores, one of them at a time: for orders of
  magnitude. *CPU s* counts both cores, whatever else they did; a dash stands for what was not measured, wall time and
  decoding where others computed meanwhile.
* †: to be measured again; calibrated on windows that run across the bundled model's documents, which costs calibrated
  methods up to half of what they bring ([compress.md](compress.md)).
* *decode*: tokens per second of one sequence over the original's, medians of three turns. Above 1 is faster. A dense
  bf16 original of few megabytes lies in the caches, so that fewer bytes bring little: large models gain more.
* Zeros: what is pruned and stays dense has the bytes and the speed of the original. That zeros and codes do not simply
  multiply is seen by comparing a row of both with the rows of each.

SmolLM2's weights come from a Q4_1 file, in groups of 32: at 4 bits in such groups they already lie on a grid. Methods
of 4 bits are judged on it in groups of 64 and above.
"""

RECIPES_HEAD = """# Recipes by name

    linnet compress ./my-model -o ./my-model-small --recipe w4a16
    linnet compress --recipe list

A named recipe decides steps, schemes and options; `--calibration`, `--calibration-rows`, `--calibration-length` and
`--seed` may be given with it. The files lie in `src/linnet/compress/recipes`: copy one to make it yours. With
`--budget` the linears of a recipe's quantise step get different bits ([compress.md](compress.md#bits-under-a-budget)).

Made by `python bench/methods.py`; do not edit. What the columns mean: [methods.md](methods.md), which has every method
beside its neighbours. KL in nats per token with its 95 % interval, on text that nobody calibrated on. †: to be measured
again, see there.
"""


def write_pages(rows: Sequence[Row]) -> None:
    """Both pages; whatever is there is replaced."""
    (DOCS / "methods.md").write_text(methods_page(rows), encoding="utf-8")
    (DOCS / "recipes.md").write_text(recipes_page(rows), encoding="utf-8")


def methods_page(rows: Sequence[Row]) -> str:
    """A table a model, in the order in which models were first measured."""
    parts = [METHODS_HEAD]
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == model]
        parts += [f"## {model}\n", f"{_measured_on(ours)}\n"]
        header = ["method", "MB", "bits", "perplexity", "KL", "KL p99", "worse", "s", "CPU s", "peak MB", "decode"]
        parts += [markdown(header, [_cells(row) for row in ours]) + "\n"]
    return "\n".join(parts)


def recipes_page(rows: Sequence[Row]) -> str:
    """Every recipe: when to use it, and its rows."""
    parts = [RECIPES_HEAD]
    for name in recipe_names():
        ours = [row for row in rows if row["method"] == f"recipe {name}"]
        parts += [f"## {name}\n", f"{when_to_use(name)}\n"]
        if ours:
            header = ["model", "MB", "of the original", "KL", "decode"]
            cells = [
                [
                    row["model"] + _mark(row),
                    _megabytes(row["bytes"]),
                    _share(row),
                    _kl(row),
                    _decoding(row),
                ]
                for row in ours
            ]
            parts += [markdown(header, cells) + "\n"]
    return "\n".join(parts)


def _measured_on(rows: Sequence[Row]) -> str:
    first = rows[0]
    calibrated = next((row["calibration"] for row in rows if row["calibration"]), None)
    calibration = f"; calibrated on {calibrated[0]} rows of {calibrated[1]} tokens" if calibrated else ""
    return (
        f"Original: {_megabytes(first['original_bytes'])} MB, perplexity {first['original_perplexity']:.2f}. KL on "
        f"{first['tokens']:,} tokens, noise floor {first['noise_floor']:.1e}{calibration}."
    )


def _cells(row: Row) -> list[str]:
    worse = "–" if not row["abilities"] else f"{len(row['worse'])} of {row['abilities']}"
    return [
        row["method"] + _mark(row),
        _megabytes(row["bytes"]),
        f"{row['bits_per_weight']:.2f}",
        f"{row['perplexity']:.2f}",
        _kl(row),
        f"{row['kl_p99']:.3g}",
        worse,
        _seconds(row.get("seconds")),
        _seconds(row.get("cpu_seconds")),
        f"{row['peak_bytes'] / 1e6:.0f}",
        _decoding(row),
    ]


def _seconds(found: float | None) -> str:
    return "–" if found is None else f"{found:.0f}"


def _decoding(row: Row) -> str:
    return f"{row['decode_ratio']:.2f} ×" if "decode_ratio" in row else "–"


def _mark(row: Row) -> str:
    """Of a row whose calibration is known to have been wrong."""
    return " †" if row.get("across_documents") else ""


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.3g}"


def _share(row: Row) -> str:
    return f"{row['bytes'] / row['original_bytes']:.0%}"


def _kl(row: Row) -> str:
    value, low, high = (f"{each:.4f}" for each in row["kl"])
    return f"{value} [{low}, {high}]"
