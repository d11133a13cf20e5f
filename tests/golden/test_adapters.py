# SPDX-License-Identifier: Apache-2.0
"""Adapters against transformers with the adapter merged into its weights: policy exact, fp32, two adapters and rows
without one in the same steps, prefill and cached decode, on every backend.

Families that keep a linear by itself, fuse it (in rows one after the other, or in groups), or store it by inputs.
"""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
import torch
import transformers
from test_families import DECODE, LIMITS, MODELS, TOLERANCE, backend_named, worst_difference
from tiny_adapter import deltas, write_adapter
from tiny_models import VOCABULARY, reference_logits, write

from linnet.engine.adapter_terms import fit_adapter
from linnet.errors import CheckpointError
from linnet.formats.peft import read_peft
from linnet.models.load import load_model
from linnet.program.adapters import adapter_sites, add_adapters

SEED = 11
FAMILIES = ("llama-2-biases", "gemma-2", "phi-3", "gpt-neox", "falcon-40b", "gpt-2", "qwen2-moe", "granite-hybrid",
            "mamba")  # fmt: skip


def shapes_of(model: Any) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of the linears that PEFT would find in the layers of a model of transformers."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = tuple(module.weight.shape)
        elif isinstance(module, transformers.pytorch_utils.Conv1D):
            found[name] = tuple(module.weight.shape)[::-1]
    return {name: shape for name, shape in found.items() if ".layers." in name or ".h." in name}


def with_adapter(model: Any, adapter: Path) -> Any:
    changed = copy.deepcopy(model)
    modules = dict(changed.named_modules())
    with torch.no_grad():
        for name, delta in deltas(adapter).items():
            weight = modules[name].weight
            wide = delta if isinstance(modules[name], torch.nn.Linear) else delta.T
            weight.copy_((weight.double() + torch.from_numpy(wide)).float())
    return changed


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_an_adapter_are_those_of_merged_weights(name: str, tmp_path: Path) -> None:
    model = write(MODELS[name], tmp_path / "model", SEED)
    source = load_model(tmp_path / "model")
    sites = adapter_sites(source.program)
    known = {site.module for site in sites}
    shapes = {module: shape for module, shape in shapes_of(model).items() if module in known or
              any(site.endswith(module) or module.endswith(site) for site in known)}  # fmt: skip
    assert shapes
    some = dict(list(shapes.items())[::2])
    paths = [
        write_adapter(tmp_path / "one", shapes, rank=4, alpha=8, seed=1),
        write_adapter(tmp_path / "two", some, rank=3, alpha=2, seed=2, use_rslora=True),
    ]
    fitted = [fit_adapter(read_peft(path), sites) for path in paths]
    rng = random.Random(SEED)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (23, 3, 17, 1, 8, 12)]
    own = [0, 1, -1, 1, 0, -1]
    models = [with_adapter(model, path) for path in paths]
    expected = [reference_logits(model if which < 0 else models[which], [prompt])[0]
                for prompt, which in zip(prompts, own, strict=True)]  # fmt: skip
    plain = reference_logits(model, prompts)
    assert all(
        (a - b).abs().max() > 10 * TOLERANCE for a, b, which in zip(expected, plain, own, strict=True) if which >= 0
    )
    adapted = replace(source, program=add_adapters(source.program))
    for backend in ("reference", "cpu", "portable"):
        executable = backend_named(backend).prepare(adapted, "exact", LIMITS)
        for number, adapter in enumerate(fitted):
            executable.set_adapter(number, executable.prepare_adapter(adapter.terms))
        for chunks in (None, DECODE):
            found = stepping.run(executable, prompts, chunks, SEED, own)
            worst = worst_difference(found, expected)
            print(f"{name} {backend}: max abs difference {worst:.1e}")
            assert worst <= TOLERANCE
            for logits, wanted in zip(found, expected, strict=True):
                assert np.array_equal(logits.argmax(-1), wanted.numpy().argmax(-1))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write(MODELS["qwen2"], tmp_path / "model", SEED)
    sites = adapter_sites(load_model(tmp_path / "model").program)
    module = "model.layers.0.self_attn.q_proj"
    for shapes, words in (
        ({module: (48, 49)}, r"of a linear \[48, 49\]; the model's is \[48, 48\]"),
        ({"model.layers.9.self_attn.q_proj": (48, 48)}, "no linear of the model's layers"),
        ({"lm_head": (VOCABULARY, 48)}, "no linear of the model's layers"),
        ({"q_proj": (48, 48)}, "several linears of the model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            fit_adapter(read_peft(write_adapter(tmp_path / words[:9], shapes)), sites)
    wrapped = f"base.{module}"
    fit_adapter(read_peft(write_adapter(tmp_path / "wrapped", {wrapped: (48, 48)})), sites)
    with pytest.raises(CheckpointError, match="twice"):
        fit_adapter(read_peft(write_adapter(tmp_path / "twice", {module: (48, 48), wrapped: (48, 48)})), sites)
