# SPDX-License-Identifier: Apache-2.0
"""Folds are found in the program of any family, and scaling them leaves the function alone."""

from pathlib import Path

import pytest
import torch
from planted import error, rewritten

from linnet.compress.block import Block
from linnet.compress.folds import folds_of
from linnet.models.load import ModelSource, load_model

FAMILIES = {
    "llama-2-biases": ["norm", "context", "norm", "activation"],
    "qwen3": ["norm", "context", "norm", "activation"],
    "gemma-2": ["norm", "context", "norm", "activation"],
    "phi-3": ["norm", "context", "norm", "activation"],
    "gpt-neox": ["norm", "context", "norm"],  # two norms side by side; gelu lets nothing through
    "bloom": ["norm", "context", "norm"],
}


def scaled(source: ModelSource, packed: bool) -> ModelSource:
    """Every fold of the model, its columns divided by 0.25 to 4."""
    generator, changed = torch.Generator().manual_seed(3), dict[str, torch.Tensor]()
    modules = {info.module for info in source.linears()} if packed else set[str]()
    for index, folds in folds_of(source.program, source.linears()).items():
        block = Block(source.program.segments[index], source, modules)
        for fold in folds:
            wished = fold.shared(torch.exp2(4 * torch.rand(fold.shape[1], generator=generator) - 2))
            assert torch.equal(wished, fold.shared(wished))
            fold.apply(block, wished)
        changed |= {name: block.dense(name) for name in block.names}
    return rewritten(source, changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_of_every_family_stays(family, tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), tmp_path)
    source = load_model(tmp_path)
    folds = folds_of(source.program, source.linears())
    assert [fold.tap.split(".")[-1] for fold in folds[1]] == FAMILIES[family]
    assert len(folds) == len(source.spec.layers)
    changed = scaled(source, packed=False)
    assert error(changed, source) ** 0.5 < 1e-5
    before, after = (model.checkpoint.tensor(folds[1][0].readers[0].tensor) for model in (source, changed))
    assert abs(after / before - 1).mean() > 0.1  # something did change


def test_narrow_types_hold_the_same_function(tiny_model: Path):
    """bf16: what will be packed takes exactly what the rounded gain divides by; what stays dense, powers of two."""
    source = load_model(tiny_model)
    for packed in (True, False):
        changed = scaled(source, packed)
        assert error(changed, source) ** 0.5 < 1e-5
    reader = changed.checkpoint.tensor("model.layers.0.mlp.up_proj.weight")
    assert (torch.from_numpy(reader) == torch.from_numpy(reader).bfloat16().float()).all()


def test_query_heads_of_a_group_share_their_numbers(tiny_model: Path):
    source = load_model(tiny_model)
    fold = folds_of(source.program, source.linears())[1][1]  # 4 query heads over 2 of keys and values, of 8 columns
    assert [info.module for info in fold.readers] == ["model.layers.0.self_attn.o_proj"]
    assert fold.channels == (*range(8), *range(8), *range(8, 16), *range(8, 16))
    shared = fold.shared(torch.arange(32.0))
    assert shared.tolist() == [*range(8, 16), *range(8, 16), *range(24, 32), *range(24, 32)]


def test_a_norm_whose_gain_is_nothing_is_not_divided(fp32_model: Path):
    source = load_model(fp32_model)
    block = Block(source.program.segments[1], source, ())
    fold = folds_of(source.program, source.linears())[1][0]
    assert fold.gain is not None
    gain = block.dense(fold.gain).clone()
    gain[5] = 0
    block.change(fold.gain, gain)
    became = fold.apply(block, torch.full((32,), 2.0))
    assert became[5] == 1
    assert became[4] == 2
    assert block.dense(fold.gain)[5] == 0
