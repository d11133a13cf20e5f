# SPDX-License-Identifier: Apache-2.0
"""Makes the helpers of this folder and of `tests/e2e` importable, whatever pytest's import mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
