# SPDX-License-Identifier: Apache-2.0
"""bench/ is a folder of scripts, not a package: its modules and the op cases are found as the scripts find them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "ops")]
