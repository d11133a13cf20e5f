# SPDX-License-Identifier: Apache-2.0
"""The tiny random Llama of the end-to-end tests, and a text to calibrate on."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "golden"))
sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from tiny_llama import write_tiny_llama

TEXT = "the cat in the hat on a mat, and then another then there in the thin thing. " * 200


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads and lose much when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hidden 32, intermediate 64, 2 layers, bf16, separate head."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), dtype="bfloat16", spread=0.2)


@pytest.fixture(scope="session")
def fp32_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp32, so that what leaves the function alone can be told from rounding."""
    return write_tiny_llama(tmp_path_factory.mktemp("fp32"), dtype="float32", spread=0.2)


@pytest.fixture(scope="session")
def text() -> str:
    """About five thousand tokens of the tiny tokenizer."""
    return TEXT
