# SPDX-License-Identifier: Apache-2.0
"""The Block: one place for what runs and what is written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from linnet.compress.block import Block
from linnet.models.load import load_model
from linnet.schemes.packed_weight import quantize_weight
from linnet.schemes.presets import parse_scheme

MODULE, NORM = "model.layers.0.mlp.up_proj", "model.layers.0.input_layernorm.weight"


def test_what_runs_is_what_is_written(tiny_model: Path):
    source = load_model(tiny_model)
    block = Block(source.program.segments[1], source, {MODULE})
    name = "layers.0.mlp.up.weight"
    assert torch.equal(block.running()[name], block.dense(f"{MODULE}.weight"))
    # A norm stays dense: what it becomes is what its type holds, at once.
    block.change(NORM, torch.full((32,), 1 / 3))
    assert torch.equal(block.running()["layers.0.attention.norm.weight"], torch.full((32,), 1 / 3).bfloat16().float())
    assert block.stored(NORM).dtype == source.checkpoint.tensor(NORM).dtype
    assert np.array_equal(block.stored(NORM).astype(np.float32), block.dense(NORM).numpy())
    # A weight to be packed is kept in fp32 until it is.
    block.change(f"{MODULE}.weight", block.dense(f"{MODULE}.weight") / 3)
    assert not torch.equal(block.running()[name], block.running()[name].bfloat16().float())
    packed = quantize_weight(block.dense(f"{MODULE}.weight").numpy(), parse_scheme("W4A16-g16").linear)
    block.pack(MODULE, packed)
    assert torch.equal(block.running()[name], torch.from_numpy(packed.dequantize()))
    assert block.compressed(source.program)[name] is packed
    with pytest.raises(AssertionError, match="after it was packed"):
        block.change(f"{MODULE}.weight", torch.zeros(64, 32))


def test_rows_of_a_fused_tensor(tmp_path: Path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == "bloom"), tmp_path)
    source = load_model(tmp_path)
    fused = next(info for info in source.linears() if len(info.operations) == 3)
    block = Block(source.program.segments[1], source, {fused.module})
    before = {name: value.clone() for name, value in block.running().items()}
    block.change(fused.tensor, block.dense(fused.tensor) * 2)
    packed = quantize_weight(block.dense(fused.tensor).numpy(), parse_scheme("W8A16").linear)
    for step in (lambda: None, lambda: block.pack(fused.module, packed)):
        step()
        for operation in fused.operations:
            assert torch.allclose(block.running()[f"{operation}.weight"], 2 * before[f"{operation}.weight"], atol=0.02)
