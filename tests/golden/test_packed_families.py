# SPDX-License-Identifier: Apache-2.0
"""Every family with packed int4 linears, fused ones sliced by rows: exact logits equal transformers' dequantised."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import safetensors.numpy
import stepping
import torch
from tiny_models import TINY_MODELS, VOCABULARY, reference_logits, write

from linnet.backends.interface import Limits
from linnet.backends.select import choose_backend
from linnet.models.load import load_model
from linnet.program.check import check
from linnet.schemes import quantize_weight
from linnet.schemes.scheme import LinearScheme, Scheme

ONE_PER_FAMILY = ("llama-2-biases", "mistral", "qwen2", "qwen3", "gemma-2", "gemma-3", "phi-3", "gpt-neox", "bloom")
SCHEME = LinearScheme(Scheme("int4", "group", group_size=16))
TOLERANCE = 1e-4
SEED = 11
LIMITS = Limits(128, 8, 128, stepping.BLOCK_SIZE, stepping.BLOCKS_PER_SEQUENCE)


@dataclass
class Packed:
    """A directory with packed linears and what they mean."""

    path: Path
    meaning: dict[str, np.ndarray]


def pack_all(source_path: Path, target: Path) -> Packed:
    """Quantise every block linear of a dense checkpoint; one file, compressed-tensors layout."""
    source = load_model(source_path)
    target.mkdir()
    tensors = {name: source.checkpoint.tensor(name) for name in source.checkpoint.names()}
    meaning: dict[str, np.ndarray] = {}
    for linear in source.linears():
        if linear.kind == "linear":
            packed = quantize_weight(np.asarray(tensors.pop(linear.tensor), np.float32), SCHEME)
            tensors |= {f"{linear.module}.{name}": array for name, array in packed.arrays.items()}
            meaning[linear.tensor] = packed.dequantize()
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, target / "model.safetensors"
    )
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True, "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [source.spec.head],
    }
    (target / "config.json").write_text(json.dumps(source.checkpoint.config | {"quantization_config": section}))
    return Packed(target, meaning)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_packed_logits(name: str, backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    tiny = next(tiny for tiny in TINY_MODELS if tiny.name == name)
    model = write(tiny, tmp_path / "dense", SEED)
    packed = pack_all(tmp_path / "dense", tmp_path / "packed")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor, meaning in packed.meaning.items():
            parameters[tensor].copy_(torch.from_numpy(np.array(meaning)))
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in tiny.lengths]
    expected = reference_logits(model, prompts)

    source = load_model(packed.path)
    check(source.program)
    assert sum(isinstance(weight.dtype, LinearScheme) for weight in source.program.weights) >= len(packed.meaning)
    executable = choose_backend(backend).prepare(source, "exact", LIMITS)
    for chunks in (None, (7, 1, 1, 1)):
        found = stepping.run(executable, prompts, chunks, SEED)
        worst = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))
        print(f"{name} {backend} chunks {chunks}: max abs difference {worst:.1e}, seed {SEED}")
        assert worst <= TOLERANCE
