# SPDX-License-Identifier: Apache-2.0
"""A model with sparse terms beside its codes says on the native kernels what it says on the reference."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="compressing needs torch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet import demo
from linnet.api import LLM
from linnet.compress import compress, make_recipe


def test_both_backends_say_the_same(tmp_path: Path) -> None:
    recipe = make_recipe("KMEANS2", "kmeans", options={"sparse": 0.01})
    path = compress(demo.model_directory(), tmp_path / "sparse", recipe).path
    scores = []
    for backend in ("cpu", "reference"):
        with LLM(path, backend=backend, policy="exact", max_model_len=128, kv_bytes=32 * 2**20) as llm:
            rows = [llm.tokenizer.encode("Once upon a time the baker of the town went to the mill."), [5, 6, 7]]
            scores.append(np.concatenate(llm.score(rows)))
    with LLM(path, backend="cpu", policy="fast", max_model_len=128, kv_bytes=32 * 2**20) as llm:
        fast = np.concatenate(llm.score(rows))
    with LLM(demo.model_directory(), backend="cpu", max_model_len=128, kv_bytes=32 * 2**20) as llm:
        plain = np.concatenate(llm.score(rows))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    np.testing.assert_allclose(scores[0], fast, atol=0.2)
    assert np.abs(scores[0] - plain).max() > 1e-3
