# SPDX-License-Identifier: Apache-2.0
"""Real GGUF files taken apart and put together again: every tensor's bytes as they were."""

from pathlib import Path

import pytest

from linnet.formats import Checkpoint
from linnet.formats.convert import to_gguf
from linnet.gguf import GgufModel
from linnet.text.gguf_vocabulary import gguf_vocabulary

pytestmark = pytest.mark.real


def test_every_tensor_of_smollm2_comes_back(real_gguf: Path, tmp_path: Path) -> None:
    """Query and key rows are put into halves by the reader and into pairs by the writer; blocks are never rounded."""
    with Checkpoint.open(real_gguf) as source:
        made = to_gguf(source, tmp_path / "again.gguf", "Q4_1", {}, exact=True, threads=2)
    assert made.verified
    with GgufModel(real_gguf) as before, GgufModel(tmp_path / "again.gguf") as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name, tensor in before.tensors.items():
            assert after.tensors[name].type == tensor.type
            assert bytes(after.raw(name)) == bytes(before.raw(name)), name
        for key, value in before.metadata.items():
            if key.startswith("llama."):
                assert after.metadata[key] == value, key


def test_the_tokenizer_of_smollm2_is_described_as_its_file_describes_it(real_gguf: Path, real_model: Path) -> None:
    described = gguf_vocabulary(real_model, 49152)
    with GgufModel(real_gguf) as source:
        for key in ("model", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "add_bos_token"):
            assert described[f"tokenizer.ggml.{key}"] == source.metadata[f"tokenizer.ggml.{key}"], key
        for key in ("tokens", "merges"):
            assert described[f"tokenizer.ggml.{key}"] == source.metadata.texts(f"tokenizer.ggml.{key}"), key
        assert (described["tokenizer.ggml.token_type"] == source.metadata["tokenizer.ggml.token_type"]).all()
        assert described["tokenizer.chat_template"] == source.metadata["tokenizer.chat_template"]
