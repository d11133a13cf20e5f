# SPDX-License-Identifier: Apache-2.0
"""The OpCases of tests/ops: what backends are compared on is what is timed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))

from op_case_tables import speed_cases as speed_cases
from op_cases import SPARSE as SPARSE
from op_cases import CaseSource as CaseSource
from op_cases import OpCase as OpCase
from op_cases import RandomSource as RandomSource
from op_cases import Steps as Steps
