# SPDX-License-Identifier: Apache-2.0
"""Makes the golden tests' own modules importable, whatever pytest's import mode."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("stepping", "tiny_models", "own_names")
