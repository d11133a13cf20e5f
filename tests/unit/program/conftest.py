# SPDX-License-Identifier: Apache-2.0
"""Makes the shared helpers importable, whatever pytest's import mode."""

import sys
from pathlib import Path

tests = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(tests / "unit" / "models"), str(tests / "e2e")]
