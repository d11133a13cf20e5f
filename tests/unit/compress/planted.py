# SPDX-License-Identifier: Apache-2.0
"""Tiny models with planted outliers, and what the transforms' tests compare: a model's function."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.weights import WeightTable
from linnet.models.load import ModelSource, load_model
from linnet.program.choose_numerics import choose_numerics

LOUD = 3
"""The column of every normed value that is made loud."""
IDS = np.random.default_rng(5).integers(3, 97, (4, 48)).astype(np.int32)


def with_loud_columns(model: Path, target: Path, factor: float, quieter: float | None = None) -> Path:
    """A copy whose norms' gains are ``factor`` times as great in one column, and the readers' columns ``quieter`` times
    as small (None: as much, so that the function is the same): activations as large models have them."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    for name, readers in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        for layer in range(2):
            tensors[f"model.layers.{layer}.{name}.weight"][LOUD] *= factor
            for reader in readers:
                tensors[f"model.layers.{layer}.{reader}.weight"][:, LOUD] /= quieter or factor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def with_loud_stream(model: Path, target: Path, factor: float) -> Path:
    """Another model, in whose residual stream one column is ``factor`` times as loud, and heard as much."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, LOUD] *= factor
    for name, values in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            values[:, LOUD] /= factor
    tensors["lm_head.weight"][:, LOUD] /= factor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@torch.no_grad()
def logits(model: Path | ModelSource, ids: np.ndarray = IDS) -> torch.Tensor:
    """fp32 [tokens, vocabulary] on int32 [rows, length], activations rounded where the checkpoint says so."""
    source = model if isinstance(model, ModelSource) else load_model(model)
    program = choose_numerics(source.program, "exact")
    table, memory = WeightTable(program, source), FunctionalMemory.of(program)
    inputs = whole_sequence_inputs(torch.from_numpy(ids))
    result = run_ops(program, 0, len(program.ops), inputs, ("logits",), table, memory)["logits"]
    assert isinstance(result, torch.Tensor)
    return result


def error(candidate: Path | ModelSource, reference: Path | ModelSource) -> float:
    """|y' - y|^2 / |y|^2 of the logits."""
    expected = logits(reference)
    return float((logits(candidate) - expected).square().sum() / expected.square().sum())


def rewritten(source: ModelSource, changed: Mapping[str, torch.Tensor]) -> ModelSource:
    """The model with other tensors."""
    checkpoint = source.checkpoint.rewritten(lambda name, _: changed[name].numpy() if name in changed else None)
    return replace(source, checkpoint=checkpoint)
