# SPDX-License-Identifier: Apache-2.0
"""bench/ is a folder of scripts, not a package: its modules are found as the scripts find each other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))
