# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M as its GGUF file (Q4_K_M) lies: logits equal transformers' on the dequantised weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="golden logits need PyTorch")
transformers = pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping  # noqa: E402
from tiny_models import reference_logits  # noqa: E402

from linnet.backends.interface import Limits  # noqa: E402
from linnet.backends.select import choose_backend  # noqa: E402
from linnet.models.load import ModelSource, load_model  # noqa: E402
from linnet.schemes.packed_weight import PackedWeight  # noqa: E402

pytestmark = pytest.mark.real

LIMITS = Limits(64, 4, 64, stepping.BLOCK_SIZE, stepping.BLOCKS_PER_SEQUENCE)
PROMPTS = ([2, 818, 5279, 529, 7001, 563], [2, 14946, 3324, 496, 990, 993, 691, 496, 2268, 4479, 1178, 236764])
TOLERANCE = 2e-5
"""Relative to the largest logit."""


def in_transformers(source: ModelSource) -> Any:
    fields = {name: value for name, value in source.checkpoint.config.items() if name != "quantization_config"}
    config = transformers.Gemma3TextConfig(**fields)
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForCausalLM(config).float().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for weight in source.program.weights:
            stored = source.weight(weight.ref)
            values = stored.dequantize() if isinstance(stored, PackedWeight) else np.asarray(stored, np.float32)
            parameters[weight.ref.checkpoint_name].copy_(torch.from_numpy(np.array(values)))
    model.tie_weights()
    return model


def test_logits_equal_transformers(gemma_gguf: Path) -> None:
    source = load_model(gemma_gguf)
    assert source.parameters == 268_098_176
    assert [layer.mixer.window for layer in source.spec.layers] == [*[512] * 5, None] * 3
    expected = reference_logits(in_transformers(source), [list(prompt) for prompt in PROMPTS])
    executable = choose_backend("reference").prepare(source, "exact", LIMITS)
    found = stepping.run(executable, PROMPTS, (4, 1, 1), 0)
    for ours, theirs in zip(found, expected, strict=True):
        largest = float(theirs.abs().max())
        worst = float(np.abs(ours - theirs.numpy()).max())
        print(f"{len(ours)} tokens: max abs difference {worst:.1e} of {largest:.1f}")
        assert worst <= TOLERANCE * largest
        assert (ours.argmax(-1) == theirs.numpy().argmax(-1)).all()
