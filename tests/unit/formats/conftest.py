# SPDX-License-Identifier: Apache-2.0
"""Helpers of this folder are importable under their own names (pytest runs with import-mode importlib)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "e2e")]
