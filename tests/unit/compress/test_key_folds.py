# SPDX-License-Identifier: Apache-2.0
"""Keys smoothed against their queries: the function stays, and codes of 4 bits hold what they did not."""

import shutil
from pathlib import Path

import pytest
import torch
from planted import error, rewritten
from safetensors.numpy import load_file, save_file

from linnet.compress import check, compress, recipe_from
from linnet.compress.block import Block
from linnet.compress.key_folds import key_folds_of
from linnet.compress.transforms.smoothattention import SmoothAttention, SmoothAttentionOptions
from linnet.errors import ConfigError
from linnet.models.load import load_model

ROWS = {"calibration_rows": 6, "calibration_length": 64, "chunk_tokens": 128}
SMOOTH = {"step": "smooth", "algorithm": "smoothattention"}
CODED = {"step": "quantise", "algorithm": "rtn", "scheme": "W8A16-kv4"}


@pytest.mark.parametrize("family", ["llama-2-biases", "qwen3", "phi-3", "llama-3-tied", "gpt-neox"])
def test_scaled_keys_leave_the_function_alone(family, tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    found = [tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family]
    if not found:
        pytest.skip(f"no tiny {family}")
    tiny_models.write(found[0], tmp_path / family)
    source, changed = load_model(tmp_path / family), dict[str, torch.Tensor]()
    generator, every = torch.Generator().manual_seed(1), key_folds_of(source.program, source.linears())
    assert every
    for index, folds in every.items():
        block = Block(source.program.segments[index], source)
        for fold in folds:
            channels = torch.rand(fold.key_side.heads * len(fold.pairs), generator=generator) * 8 + 0.2
            fold.apply(block, fold.shared(channels))
        changed |= {name: block.dense(name) for name in block.names}
    assert any(not torch.equal(changed[name], torch.from_numpy(source.checkpoint.tensor(name).astype("float32")))
               for name in changed)  # fmt: skip
    assert error(rewritten(source, changed), source) ** 0.5 < 1e-5


def with_loud_keys(model: Path, target: Path, factor: float) -> Path:
    """The same function, one pair of channels of every key ``factor`` times as loud."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    for layer in range(2):
        for name, by in (("k_proj", factor), ("q_proj", 1 / factor)):
            rows = tensors[f"model.layers.{layer}.self_attn.{name}.weight"].reshape(-1, 8, 32)
            rows[:, [2, 6]] *= by  # heads of 8 channels, of which 2 and 6 turn together
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_loud_channels_of_keys_cost_little_once_smoothed(fp32_model, tmp_path, text):
    model = with_loud_keys(fp32_model, tmp_path / "model", 30)
    assert error(model, fp32_model) < 1e-10
    found = {}
    for name, steps in (("weights", [{**CODED, "scheme": "W8A16"}]), ("plain", [CODED]), ("smooth", [SMOOTH, CODED])):
        result = compress(model, tmp_path / name, recipe_from({"steps": steps, **ROWS}), calibration_text=text)
        found[name] = error(result.path, model)
    notes = result.layers["model.layers.0.self_attn.k_proj"]["smoothattention"]
    assert notes["alpha"] > 0.5
    assert notes["error"] < 0.5 * notes["error_before"]
    assert found["smooth"] - found["weights"] < 0.5 * (found["plain"] - found["weights"])


def test_options_are_checked(fp32_model, text):
    with pytest.raises(ConfigError, match="alpha of smoothattention is 2"):
        check(fp32_model, recipe_from({"steps": [{**SMOOTH, "options": {"alpha": 2}}, CODED], **ROWS}), text)
    assert SmoothAttention(SmoothAttentionOptions()).work((64, 8)) > 0
