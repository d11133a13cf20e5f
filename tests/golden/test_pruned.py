# SPDX-License-Identifier: Apache-2.0
"""A structurally pruned checkpoint is an ordinary smaller one: transformers loads it, and logits are the same.

Nothing but the written directory is shared: transformers reads its config and tensors by itself.
"""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
import torch
import transformers
from tiny_models import TINY_MODELS, VOCABULARY, reference_logits, write

from linnet.backends.interface import Limits
from linnet.backends.select import choose_backend
from linnet.compress import compress
from linnet.compress.reading import recipe_from
from linnet.models.load import load_model

TOLERANCE = 1e-4
SEED = 11
LIMITS = Limits(128, 8, 128, stepping.BLOCK_SIZE, stepping.BLOCKS_PER_SEQUENCE)
MODELS = {tiny.name: tiny for tiny in TINY_MODELS}
NEURONS = {"what": "neurons", "ratio": 0.4, "multiple": 16}
HEADS = {"what": "heads", "count": 1}
KV_GROUPS = {"what": "kv_groups", "count": 1}
LAYERS = {"what": "layers", "count": 1}

CASES = [
    *((name, NEURONS) for name in ("llama-2-biases", "gemma-2", "phi-3", "qwen3", "gpt-neox", "qwen2-window")),
    *((name, HEADS) for name in ("llama-2-biases", "llama-3-tied", "qwen2", "gemma-3")),
    *(
        (name, KV_GROUPS)
        for name in ("llama-2-biases", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3", "phi-3-partial")
    ),
    ("llama-1", HEADS | {"count": 2}),
    *((name, LAYERS) for name in ("llama-1", "qwen2-window", "gemma-2", "gemma-3-ropes", "phi-3", "gpt-neox", "bloom")),
    ("gemma-3", LAYERS | {"count": 3, "leave": [0, -1]}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options['what']}" for name, options in CASES])
def test_transformers_loads_it_and_means_the_same(name: str, options: dict, tmp_path: Path) -> None:
    tiny = MODELS[name]
    original = write(tiny, tmp_path / "dense", SEED)
    step = {"step": "prune", "algorithm": "magnitude", "options": options}
    result = compress(tmp_path / "dense", tmp_path / "pruned", recipe_from({"steps": [step]}))
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in tiny.lengths]
    reader = transformers.AutoModelForCausalLM
    loaded, told = reader.from_pretrained(
        result.path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = reference_logits(loaded.eval(), prompts)
    source = load_model(result.path, tiny.max_context)
    before = sum(parameter.numel() for parameter in original.parameters())
    assert source.parameters == sum(parameter.numel() for parameter in loaded.parameters()) < before
    executable = choose_backend("reference").prepare(source, "exact", LIMITS)
    found = stepping.run(executable, prompts, None, SEED)
    worst = max(float(np.abs(ours - theirs.numpy()).max()) for ours, theirs in zip(found, expected, strict=True))
    print(f"{name} {options['what']}: {before} -> {source.parameters} parameters, max abs difference {worst:.1e}")
    assert worst <= TOLERANCE
