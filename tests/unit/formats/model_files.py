# SPDX-License-Identifier: Apache-2.0
"""Small model directories, written byte by byte or with our writer, for the tests of this room."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.errors import CheckpointError, LinnetError
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.schemes import parse_scheme, quantize_weight

CONFIG = {"model_type": "llama", "hidden_size": 64, "tie_word_embeddings": False}


def raw_file(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    """A safetensors file from a header (object, text or bytes) and data; ``length`` may lie."""
    text = (
        header
        if isinstance(header, bytes)
        else json.dumps(header).encode()
        if not isinstance(header, str)
        else header.encode()
    )
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def good_header() -> tuple[dict[str, Any], bytes]:
    """Three tensors, 96 bytes of data."""
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
        "b.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [64, 80]},
        "c": {"dtype": "I8", "shape": [2, 8], "data_offsets": [80, 96]},
    }
    return header, bytes(range(96))


def write_plain(directory: Path, config: Any = CONFIG) -> Path:
    """A dense directory that nobody hashed."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    raw_file(directory / "model.safetensors", *good_header())
    return directory


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Dense tensors of a tiny two-layer model."""
    rng = np.random.default_rng(seed)
    result = {"embed_tokens.weight": rng.standard_normal((32, 64)).astype(np.float32)}
    for layer in range(2):
        result[f"layers.{layer}.up.weight"] = rng.standard_normal((48, 64)).astype(np.float32)
        result[f"layers.{layer}.down.weight"] = rng.standard_normal((64, 48)).astype(np.float32)
        result[f"layers.{layer}.norm.weight"] = rng.standard_normal(64).astype(np.float32)
        result[f"layers.{layer}.odd"] = rng.standard_normal((3, 5)).astype(np.float16)
    return result


def write_model(directory: Path, scheme: str | None = "W4A16-g16", **options: Any) -> Path:
    """A published checkpoint; linears quantised if a scheme is named. Commits once per layer."""
    preset = None if scheme is None else parse_scheme(scheme)
    with CheckpointWriter(directory, **options) as writer:
        for name, tensor in tensors().items():
            if preset and name.endswith(("up.weight", "down.weight")):
                writer.add_packed(name.removesuffix(".weight"), quantize_weight(tensor, preset.linear))
            else:
                writer.add(name, tensor)
            if name.endswith("odd"):
                writer.commit()
        writer.write_json("generation_config.json", {"eos_token_id": 1})
        writer.publish(CONFIG, {"recipe": "test"})
    return directory


def use(directory: Path) -> dict[str, bytes]:
    """Open and read everything -> what a model would see."""
    with Checkpoint.open(directory) as checkpoint:
        seen = {name: checkpoint.tensor(name).tobytes() for name in checkpoint.names()}
        for name in checkpoint.names():
            for suffix in (".weight", ".weight_packed"):
                if name.endswith(suffix):
                    weight = checkpoint.linear(name.removesuffix(suffix))
                    if not isinstance(weight, np.ndarray):
                        weight.dequantize()
        return seen


def refusal(directory: Path, kind: type[LinnetError] = CheckpointError) -> str:
    """The one-line error of opening and reading; checks its time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        use(directory)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message
