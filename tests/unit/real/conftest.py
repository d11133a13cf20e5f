# SPDX-License-Identifier: Apache-2.0
"""Makes the scripts in `tools/real` importable, as they see each other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "real"))
