# SPDX-License-Identifier: Apache-2.0
"""Makes the helpers of this folder importable by its tests, whatever pytest's import mode."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("digest_executable", "tiny_llama", "engine_workload")
