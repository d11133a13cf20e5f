# SPDX-License-Identifier: Apache-2.0
"""Makes the published configs and the tiny models importable, whatever pytest's import mode."""

import sys
from pathlib import Path

for folder in ("unit/models", "e2e"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
