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
    return _fetched("smollm2")


@pytest.fixture(scope="session")
def real_gguf(real_model: Path) -> Path:
    """The GGUF file (Q4_1) that the directory was made from."""
    return real_model.parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270M (Q4_K_M), a base model; as ``real_model``."""
    return _fetched("gemma")


def _fetched(name: str) -> Path:
    done = subprocess.run([sys.executable, str(FETCH), name], capture_output=True, text=True, timeout=500)
    if done.returncode == UNREACHABLE:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
