# SPDX-License-Identifier: Apache-2.0
"""Codes of few values and tables of each row's own: what is predicted of a weight is what the CPU backend holds of it,
and it means what is stored, whatever its groups."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="compressing needs torch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet import demo
from linnet.api import LLM
from linnet.backends.cpu.backend import CpuBackend
from linnet.compress import compress, make_recipe
from linnet.formats import Checkpoint
from linnet.formats.convert.target import parse_target
from linnet.formats.convert.to_directory import to_directory
from linnet.schemes import Scheme, stored_bytes
from linnet.schemes.scheme import LinearScheme

pytestmark = pytest.mark.alone
SETTINGS = {"kv_bytes": 32 * 2**20, "max_model_len": 128, "backend": "cpu", "policy": "exact"}


@pytest.mark.parametrize(
    ("scheme", "algorithm", "group_size"),
    [("TERNARY", "rtn", None), ("BINARY", "rtn", 64), ("TERNARY", "rtn", 4), ("KMEANS2", "kmeans", None)],
)
def test_the_bytes_that_were_predicted(scheme: str, algorithm: str, group_size: int | None, tmp_path: Path) -> None:
    recipe = make_recipe(scheme, algorithm, group_size=group_size)
    path = compress(demo.model_directory(), tmp_path / "few", recipe).path
    with Checkpoint.open(path) as checkpoint:
        to_directory(checkpoint, tmp_path / "whole", parse_target("dense:F32"), {}, exact=True)
    with LLM(path, **SETTINGS) as llm, LLM(tmp_path / "whole", **SETTINGS) as whole:
        weights = [each for each in llm.source.program.weights if isinstance(each.dtype, LinearScheme)]
        stored = [llm.source.stored_bytes(each.ref) for each in weights]
        held = [CpuBackend().weight_bytes(each, size) for each, size in zip(weights, stored, strict=True)]
        if group_size == 4:  # no whole eights of columns, of which tiles are made
            scheme_held = LinearScheme(Scheme("int2", "group", 4))
            assert held == [stored_bytes(scheme_held, each.shape) for each in weights]
        else:
            assert llm._engine.executable.tile_bytes == sum(held)
        if scheme == "TERNARY":  # five codes in a byte on disk, four in memory
            assert sum(held) > sum(stored)
        rows = [llm.tokenizer.encode("Once upon a time the baker of the town went to the mill.")]
        assert np.max(whole.compare(llm, rows)[0].kl) < 1e-6
