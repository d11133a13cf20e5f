# SPDX-License-Identifier: Apache-2.0
"""Models in other loaders' forms: a tiny random model written quantised, and dense with what its codes mean.

``encode`` writes one linear by the form's published definition, in torch and numpy alone. Linnet must then read the
same numbers, bit for bit, and compute the same logits from both directories.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stepping
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import VOCABULARY, gated

from linnet.backends.interface import Limits, Policy
from linnet.backends.select import choose_backend
from linnet.formats import Checkpoint
from linnet.formats.convert.source import list_tensors
from linnet.models import load_model
from linnet.plan import predict
from linnet.program.check import check
from linnet.schemes import PackedWeight

SEED = 5
LIMITS = Limits(max_tokens=128, max_sequences=8, max_outputs=128, block_size=4, max_blocks_per_sequence=16)
Encode = Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""(module, weight [outputs, inputs]) -> stored tensors by leaf, and the weight they mean, fp32."""


@dataclass(frozen=True)
class Pair:
    """The same numbers twice."""

    quantised: Path
    dense: Path
    meaning: dict[str, np.ndarray]


def llama(**changes: Any) -> Any:
    """Widths that are multiples of 32, all different."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        **gated(**(sizes | changes), num_hidden_layers=2, tie_word_embeddings=False, initializer_range=0.3)
    )
    return transformers.LlamaForCausalLM(config).eval()


def write_pair(model: Any, folder: Path, record: dict[str, Any] | None, encode: Encode, head: bool = False) -> Pair:
    """Every linear in the form (``head``: lm_head too), the rest dense."""
    quantised, dense = folder / "quantised", folder / "dense"
    meaning: dict[str, np.ndarray] = {}
    tensors: dict[str, torch.Tensor] = {}
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (head or name != "lm_head"):
            leaves, value = encode(name, module.weight.detach())
            tensors |= {f"{name}.{leaf}": tensor.clone() for leaf, tensor in leaves.items()}
            plain[f"{name}.weight"] = value
            meaning[name] = value.numpy()
    written = {f"{name}.weight" for name in meaning}
    tensors |= {name: tensor.contiguous() for name, tensor in plain.items() if name not in written}
    config = model.config.to_dict()
    for directory, content, extra in (
        (quantised, tensors, {} if record is None else {"quantization_config": record}),
        (dense, plain, {}),
    ):
        directory.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config | extra))
    return Pair(quantised, dense, meaning)


def logits(path: Path, backend: str, policy: Policy = "exact") -> list[np.ndarray]:
    """Of a few prompts, in chunks."""
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in (13, 3, 8)]
    executable = choose_backend(backend).prepare(load_model(path), policy, LIMITS)
    check(executable.program)
    return stepping.run(executable, prompts, (5, 1, 1), SEED)


def check_pair(pair: Pair, backend: str = "cpu", tolerance: float = 2e-4) -> None:
    """Numbers bit-equal, slices of rows too; logits equal up to the order of sums."""
    with load_model(pair.quantised).checkpoint as checkpoint:
        for module, value in pair.meaning.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight), module
            assert checkpoint.shape_of(module) == value.shape
            assert np.array_equal(ours.dequantize(), value), module
            step = ours.scheme.weight.block[0] if ours.scheme.weight.block else 1
            ranges = [(step, 2 * step), (0, step)] if value.shape[0] >= 2 * step else [(0, value.shape[0])]
            rows = np.concatenate([value[start:stop] for start, stop in ranges])
            assert np.array_equal(ours.take_rows(ranges).dequantize(), rows), module
        with Checkpoint.open(pair.dense) as dense:  # what a converter would write is what the model is
            assert {tensor.name for tensor in list_tensors(checkpoint)} == set(dense.names())
        assert predict(load_model(pair.quantised), LIMITS, "fast").weight_bytes <= checkpoint.nbytes
    expected = logits(pair.dense, backend)
    found = logits(pair.quantised, backend)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    largest = max(float(np.abs(values).max()) for values in expected)
    print(f"{backend}: worst difference {worst:.1e} of logits up to {largest:.1f}")
    assert worst <= tolerance * max(largest, 1.0)
