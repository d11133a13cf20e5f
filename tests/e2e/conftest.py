# SPDX-License-Identifier: Apache-2.0
"""Makes the helpers of this folder importable by its tests, whatever pytest's import mode."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("digest_executable", "tiny_llama", "engine_workload")


@pytest.fixture(scope="module")
def one_thread():
    """Compression of tiny matrices in this process as in the ones it is compared with: their threads are recorded."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
