# SPDX-License-Identifier: Apache-2.0
"""Conformance: every OpCase on every tier of the cpu backend against the reference, as a normalised squared error."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend needs PyTorch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cases import RESULT, CaseSource, OpCase, conformance_cases
from linnet.backends.cpu import _native
from linnet.backends.cpu.backend import CpuBackend
from linnet.backends.interface import Backend
from linnet.backends.reference.backend import ReferenceBackend
from linnet.program.check import check

CASES = conformance_cases()
ISAS = _native.available_isas()
BACKENDS = {isa: CpuBackend(threads=2, isa=isa) for isa in ISAS}

BOUND = 1e-10  # the reference adds in another order
ROUNDED_BOUND = 1e-5  # both sides round keys, values and weights, not always alike
EXACT = ("exact", "auto")


def run(backend: Backend, case: OpCase) -> np.ndarray:
    executable = backend.prepare(CaseSource(case), case.policy, case.limits(), (RESULT,), case.kv_cache)
    executable.execute(case.batch(), executable.allocate_states(case.limits().max_blocks_per_sequence))
    return executable.tap(RESULT)


def test_the_table_is_well_formed() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        check(CaseSource(case).program)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tier_agrees_with_the_reference(case: OpCase) -> None:
    expected = run(ReferenceBackend(), case).astype(np.float64)
    for isa, backend in BACKENDS.items():
        found = run(backend, case).astype(np.float64)
        error = np.square(found - expected).sum() / np.square(expected).sum()
        bound = ROUNDED_BOUND if case.kind == "attention" and (case.policy, case.kv_cache) != EXACT else BOUND
        assert error <= bound, f"{isa}: normalised squared error {error:.3g} > {bound:.0e}"
