# SPDX-License-Identifier: Apache-2.0
"""Conformance: every OpCase on every tier of the cpu backend against the reference, as a normalised squared error."""

from typing import get_args

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend needs PyTorch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_case_tables import conformance_cases, speed_cases
from op_cases import RESULT, CaseSource, Kind, OpCase

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
    states = executable.allocate_states(case.steps.num_blocks)
    for batch in case.steps.filling(case.table_rows):
        executable.execute(batch, states)
    executable.execute(case.batch(), states)
    return executable.tap(RESULT)


@pytest.mark.parametrize("cases", [CASES, speed_cases()], ids=["conformance", "speed"])
def test_the_table_is_well_formed(cases: tuple[OpCase, ...]) -> None:
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        check(CaseSource(case).program)


def test_every_kind_of_op_is_timed() -> None:
    assert {case.kind for case in speed_cases()} == set(get_args(Kind))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tier_agrees_with_the_reference(case: OpCase) -> None:
    expected = run(ReferenceBackend(), case).astype(np.float64)
    for isa, backend in BACKENDS.items():
        found = run(backend, case).astype(np.float64)
        error = np.square(found - expected).sum() / np.square(expected).sum()
        bound = ROUNDED_BOUND if case.kind == "attention" and (case.policy, case.kv_cache) != EXACT else BOUND
        if case.kind == "hadamard":
            assert np.array_equal(found, expected), f"{isa}: other bits than the reference's"
        assert error <= bound, f"{isa}: normalised squared error {error:.3g} > {bound:.0e}"
