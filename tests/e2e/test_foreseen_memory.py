# SPDX-License-Identifier: Apache-2.0
"""What ``linnet inspect`` foretells of a model is what it takes when it is opened, to the byte, whatever its kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_encoder import write_tiny_bert, write_tiny_qwen3_embedding
from tiny_llama import write_tiny_llama
from tiny_mamba import write_tiny_hybrid

from linnet.api import LLM
from linnet.models import load_model
from linnet.plan import describe

KINDS = [write_tiny_llama, write_tiny_bert, write_tiny_qwen3_embedding, write_tiny_hybrid]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(("context", "sequences", "tokens"), [(64, 3, 16), (32, 1, 80)])
def test_it_is_what_is_taken(
    write: Callable[[Path], Path], context: int, sequences: int, tokens: int, tmp_path: Path
) -> None:
    directory = write(tmp_path / "model")
    with LLM(
        directory, max_model_len=context, max_sequences=sequences, token_budget=tokens, kv_bytes=1 << 20, backend="cpu"
    ) as llm:
        taken = llm.footprint
    told = describe(load_model(directory), "fast", context, sequences, tokens)["predicted_memory"]
    assert told["weight_bytes"] == taken.weight_bytes
    assert told["arena_bytes"] + told.get("state_bytes", 0) == taken.step_bytes
