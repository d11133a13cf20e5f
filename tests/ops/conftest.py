# SPDX-License-Identifier: Apache-2.0
"""Makes the table of op cases importable, whatever pytest's import mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
