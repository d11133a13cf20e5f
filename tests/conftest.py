# SPDX-License-Identifier: Apache-2.0
"""What tests of every folder share: a real model, fetched once into the user's cache."""

import subprocess
import sys
from pathlib import Path

import pytest

FETCH = Path(__file__).resolve().parents[1] / "tools" / "real" / "fetch.py"
UNREACHABLE = 3
"""Exit status of FETCH when nothing can be fetched here, which is no defect."""


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory; for tests marked ``real``. Read-only: it is the user's."""
    done = subprocess.run([sys.executable, str(FETCH), "smollm2"], capture_output=True, text=True, timeout=500)
    if done.returncode == UNREACHABLE:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
