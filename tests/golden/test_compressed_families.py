# SPDX-License-Identifier: Apache-2.0
"""Every family compressed by ``compress`` and read again: exact logits equal transformers' with what the codes mean.

What is left dense must lie in the result as the family publishes it: transformers' names and orientation are compared.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
import torch
import transformers
from safetensors.torch import save_file
from test_families import LIMITS, TOLERANCE, backend_named, worst_difference
from tiny_models import ONE_PER_FAMILY, TINY_MODELS, VOCABULARY, TinyModel, reference_logits, write

from linnet.compress import compress, make_recipe
from linnet.formats import Checkpoint
from linnet.models.inventory import required_tensors
from linnet.models.load import ModelSource, load_model
from linnet.models.spec import ExpertsSpec
from linnet.program.check import check
from linnet.program.hidden import reads_whole_sequences
from linnet.program.program import WeightRef
from linnet.schemes.packed_weight import PackedWeight

SEED = 13
MODELS = {tiny.name: tiny for tiny in TINY_MODELS}


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g16"])
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_compressed_and_read_again(name: str, scheme: str, tmp_path: Path) -> None:
    tiny = MODELS[name]
    model = write(tiny, tmp_path / "dense", SEED)
    dense = load_model(tmp_path / "dense", tiny.max_context)
    half = dense.spec.layers[0].feed_forward or dense.spec.layers[0].mixer
    last = half.output if half is dense.spec.layers[0].mixer else half.down
    first = re.escape(last.module.format(layer=0, expert=0))
    recipe = make_recipe(scheme, "rtn", rules=[{"match": f"re:{first}", "scheme": "dense"}])
    made = compress(tmp_path / "dense", tmp_path / "packed", recipe)
    source = load_model(made.path, tiny.max_context)
    check(source.program)
    assert source.parameters == dense.parameters
    before, after = (Checkpoint.open(tmp_path / where) for where in ("dense", "packed"))
    kept = [key for key in after.names() if key in before]
    assert len(kept) > len(dense.spec.layers)
    assert all(np.array_equal(before.tensor(key), after.tensor(key)) for key in kept), "as the family publishes it"

    if tiny.arrange is not None or dense.spec.arranged:  # transformers has no parameters of these names: dense
        save_file(_meant(source), tmp_path / "dense" / "model.safetensors")
        same = backend_named("reference").prepare(load_model(tmp_path / "dense"), "exact", LIMITS)
        _compare(source, tiny, lambda prompts: [torch.from_numpy(a) for a in stepping.run(same, prompts, None, SEED)])
        return
    if any(isinstance(layer.feed_forward, ExpertsSpec) for layer in dense.spec.layers):
        # transformers has experts in one tensor
        save_file(_meant(source), tmp_path / "dense" / "model.safetensors", {"format": "pt"})
        meant = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
        _compare(source, tiny, lambda prompts: reference_logits(meant, prompts))
        return
    parameters, prefix = dict(model.named_parameters()), "" if not tiny.bare else f"{model.base_model_prefix}."
    linears = [linear for linear in source.linears() if linear.kind == "linear"]
    with torch.no_grad():
        for linear in linears:
            packed = source.checkpoint.linear(linear.module)
            if not isinstance(packed, PackedWeight):
                assert linear.tensor in kept
                continue
            meant = source.as_published(linear.tensor, packed.dequantize())
            parameters[prefix + linear.tensor].copy_(torch.from_numpy(np.ascontiguousarray(meant)))
    _compare(source, tiny, lambda prompts: reference_logits(model, prompts))


def _compare(source: ModelSource, tiny: TinyModel, logits: Callable[[list[list[int]]], list[torch.Tensor]]) -> None:
    generator = random.Random(SEED)
    padding = tiny.config().pad_token_id  # no text has it, and XLM-R counts positions without it
    ids = [token for token in range(VOCABULARY) if token != padding]
    expected = logits(prompts := [generator.choices(ids, k=length) for length in tiny.lengths])
    for backend in ("reference", "cpu"):
        executable = backend_named(backend).prepare(source, "exact", LIMITS)
        for chunks in (None,) if reads_whole_sequences(source.program) else (None, (7, 1, 1, 1)):
            worst = worst_difference(stepping.run(executable, prompts, chunks, SEED), expected)
            print(f"{tiny.name} {backend} {chunks}: max abs difference {worst:.1e}, seed {SEED}")
            assert worst <= TOLERANCE


def _meant(source: ModelSource) -> dict[str, torch.Tensor]:
    """Every tensor of the dense model that a packed one stands for; none of them is published [inputs, outputs]."""
    found = {}
    for name in required_tensors(source.spec):
        stored = source.weight(WeightRef(name))
        dense = stored.dequantize() if isinstance(stored, PackedWeight) else stored
        found[name] = torch.from_numpy(np.array(dense, np.float32))
    return found


def test_codes_under_the_name_of_what_was_published_by_inputs(tmp_path: Path) -> None:
    """W8A8 calls its codes as the dense tensor is called; they lie [outputs, inputs] all the same."""
    write(MODELS["gpt-2"], tmp_path / "dense", SEED)
    path = compress(tmp_path / "dense", tmp_path / "packed", make_recipe("W8A8", "rtn")).path
    before, after = load_model(tmp_path / "dense"), load_model(path)
    for linear in after.linears()[:-1]:
        packed = after.checkpoint.linear(linear.module)
        assert isinstance(packed, PackedWeight)
        assert f"{linear.module}.weight" in after.checkpoint
        assert np.abs(packed.dequantize() - before.checkpoint.tensor(linear.tensor)).max() < 0.01


CALIBRATED = ("gpt-2", "gpt-j", "olmo-2", "cohere-2", "opt-350m", "qwen2-moe", "mixtral")
"""Blocks of every build: norms before, behind or shared, none, parallel or not, linears that read the stream itself."""
WORDS = "the quick brown fox jumps over the lazy dog and then sits down to think about what it has done so far "


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration_sees_what_the_linears_read(name: str, tmp_path: Path) -> None:
    """GPTQ loses less than rounding on rows of its kind, which it could not if the taps were of other values."""
    model = write(MODELS[name], tmp_path / "dense", SEED)
    characters = [chr(code) for code in range(32, 32 + VOCABULARY - 3)]
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    bpe = {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []}
    (tmp_path / "dense" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": bpe}))
    prompts = [[vocabulary[letter] for letter in WORDS[start : start + 40]] for start in (0, 20, 40)]
    expected = reference_logits(model, prompts)
    lost = {}
    for algorithm in ("rtn", "gptq"):
        fields = {} if algorithm == "rtn" else {"calibration_rows": 16, "calibration_length": 48}
        recipe = make_recipe("W3A16-g16", algorithm, **fields)
        made = compress(tmp_path / "dense", tmp_path / algorithm, recipe, calibration_text=WORDS * 40)
        executable = backend_named("reference").prepare(load_model(made.path), "exact", LIMITS)
        found = stepping.run(executable, prompts, None, SEED)
        lost[algorithm] = sum(float(np.square(a - b.numpy()).sum()) for a, b in zip(found, expected, strict=True))
    print(f"{name}: squared error of logits {lost}")
    assert lost["gptq"] < 0.8 * lost["rtn"]
