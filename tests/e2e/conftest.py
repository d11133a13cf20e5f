# SPDX-License-Identifier: Apache-2.0
"""Makes the helpers of this folder importable by its tests, whatever pytest's import mode."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("digest_executable", "tiny_llama", "engine_workload")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bf16 to compress, not to be written to; ``calibration.txt`` beside it holds CALIBRATION_TEXT."""
    from tiny_llama import CALIBRATION_TEXT, write_tiny_llama

    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", dtype="bfloat16", spread=0.2)
    (directory.parent / "calibration.txt").write_text(CALIBRATION_TEXT)
    return directory


@pytest.fixture(scope="module")
def one_thread():
    """Compression of tiny matrices in this process as in the ones it is compared with: their threads are recorded."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
