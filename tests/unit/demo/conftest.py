# SPDX-License-Identifier: Apache-2.0
"""Makes the generator in `tools/demo` importable, as its own scripts see it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "demo"))
