# SPDX-License-Identifier: Apache-2.0
"""The bundled model with two of every four weights, alone and under codes: it decodes as the same weights with their
zeros do, in the bytes that were predicted."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="compressing needs torch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet import demo
from linnet.api import LLM, SamplingParams
from linnet.backends.cpu.backend import CpuBackend
from linnet.compress import compress, recipe_from
from linnet.engine import limits_of
from linnet.formats import Checkpoint
from linnet.formats.convert.target import parse_target
from linnet.formats.convert.to_directory import to_directory
from linnet.plan import predict
from linnet.schemes.scheme import LinearScheme

PROMPTS = ["Once upon a time", "The baker of the town", "In the morning"]
SETTINGS = {"kv_bytes": 32 * 2**20, "max_model_len": 512, "backend": "cpu"}


def sparse_weights(llm: LLM) -> list[tuple[int, int]]:
    """Predicted and stored bytes of every weight without its zeros."""
    backend, found = CpuBackend(), []
    for weight in llm.source.program.weights:
        if isinstance(weight.dtype, LinearScheme) and weight.dtype.weight.sparsity is not None:
            stored = llm.source.stored_bytes(weight.ref)
            found.append((backend.weight_bytes(weight, stored), stored))
    return found


@pytest.mark.parametrize("scheme", [None, "W8A16", "W8A8", "W4A16-g32"])
def test_the_same_tokens_in_fewer_bytes(scheme: str | None, tmp_path: Path) -> None:
    steps = [{"step": "sparsify", "algorithm": "magnitude", "options": {"pattern": "2:4"}}]
    if scheme is not None:
        steps.append({"step": "quantise", "algorithm": "rtn", "scheme": scheme})
    sparse = compress(demo.model_directory(), tmp_path / "sparse", recipe_from({"steps": steps})).path
    form = "dense:BF16" if scheme is None else "compressed-tensors"
    with Checkpoint.open(sparse) as checkpoint:
        assert to_directory(checkpoint, tmp_path / "whole", parse_target(form), {}, exact=True).exact
    texts, memory = [], []
    for path in (sparse, tmp_path / "whole"):
        with LLM(path, **SETTINGS) as llm:
            outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=24))
            texts.append([output.outputs[0].token_ids for output in outputs])
            executable = llm._engine.executable
            memory.append(predict(llm.source, limits_of(llm.facts.scheduling), "fast", CpuBackend()).weight_bytes)
            weights = sparse_weights(llm)
            assert bool(weights) == (path == sparse)
            if weights and not (scheme is None and executable.isa == "avx512_bf16"):
                assert sum("sparse" in name for name in executable.choices.values()) >= len(weights)
                assert executable.tile_bytes == sum(held for held, _ in weights)
    assert texts[0] == texts[1]
    assert all(texts[0])
    if CpuBackend().isa != "avx512_bf16":
        assert memory[0] < memory[1]
