# SPDX-License-Identifier: Apache-2.0
"""Makes the shared helpers importable, whatever pytest's import mode."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
