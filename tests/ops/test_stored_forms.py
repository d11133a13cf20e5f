# SPDX-License-Identifier: Apache-2.0
"""docs/support.md's forms: every one that a reader gives is multiplied on every tier of this machine by the kernel that
the page names, and yields what the reference does."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend needs PyTorch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "docs"))
import support_matrix

from linnet.backends.interface import Backend, Batch
from linnet.backends.reference.backend import ReferenceBackend

BOUNDS = {"exact": 1e-10, "fast": 1e-6}
"""Normalised squared errors: sums in another order; and of inputs on the edge between two codes one may take each."""


TIERS = support_matrix.tier_table
ROWS = tuple(support_matrix.rows())


@cache
def on_page() -> dict[tuple[str, str], dict[str, tuple[str, str]]]:
    return TIERS.on_page(support_matrix.PAGE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def product(backend: Backend, source: object, policy: str, op: str) -> tuple[np.ndarray, str]:
    """fp32 [tokens, outputs] of the linear, and the kernel's name."""
    output = next(one.outputs[0] for one in source.program.ops if one.name == op)  # type: ignore[attr-defined]
    executable = backend.prepare(source, policy, TIERS.LIMITS, (output,), chosen=source.program)  # type: ignore
    tokens = np.arange(4, dtype=np.int32)
    starts, context, table = (np.array(of, np.int32) for of in ([0, 4], [4], [[0]]))
    executable.execute(Batch(tokens, tokens, tokens, starts, context, table, tokens), executable.allocate_states(1))
    return executable.tap(output).astype(np.float64), executable.choices[op]


def test_the_page_has_these_forms() -> None:
    assert [*on_page()] == [(row.published, row.stored) for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.published}: {row.stored}")
def test_every_tier_multiplies_by_a_form_as_the_page_says(row: object) -> None:
    taken: dict[str, list[str]] = {tier: [] for tier in TIERS.own_tiers()}
    for policy, source in support_matrix.sources(row).items():
        op = support_matrix.linear(source.program).name
        wanted, _ = product(ReferenceBackend(), source, policy, op)
        for tier, kernels in taken.items():
            found, kernel = product(TIERS.backend(tier), source, policy, op)
            error = np.square(found - wanted).sum() / np.square(wanted).sum()
            assert error <= BOUNDS[policy], f"{tier}, {policy}: normalised squared error {error:.3g}"
            kernels.append(kernel.removesuffix(f"_{tier}"))
    said = on_page()[row.published, row.stored]  # type: ignore[attr-defined]
    assert {tier: tuple(kernels) for tier, kernels in taken.items()} == {tier: tuple(said[tier]) for tier in taken}
