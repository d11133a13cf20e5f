# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as they are found: names behind a prefix, biases left out, a text model inside a pair; logits as ever."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="golden logits need PyTorch")
transformers = pytest.importorskip("transformers", reason="golden logits need transformers")

import safetensors.numpy  # noqa: E402
import stepping  # noqa: E402
from tiny_models import GEMMA3, TINY_MODELS, VOCABULARY, gated, randomise, reference_logits, write  # noqa: E402

from linnet.backends.interface import Limits  # noqa: E402
from linnet.backends.select import choose_backend  # noqa: E402
from linnet.models.load import load_model  # noqa: E402

TOLERANCE = 1e-4
SEED = 5
LIMITS = Limits(128, 8, 128, stepping.BLOCK_SIZE, stepping.BLOCKS_PER_SEQUENCE)
PROMPTS = [
    [random.Random(SEED + n).randrange(VOCABULARY) for _ in range(length)] for n, length in enumerate((19, 3, 8))
]
MODELS = {tiny.name: tiny for tiny in TINY_MODELS}


def renamed(directory: Path, rule: Any) -> None:
    """Rewrite the one file of a checkpoint: ``rule`` gives a name's new name, None drops the tensor."""
    file = directory / "model.safetensors"
    tensors = {rule(name): np.array(tensor) for name, tensor in safetensors.numpy.load_file(file).items()}
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if name}, file)


def assert_equal(directory: Path, expected: list[Any]) -> tuple[str, ...]:
    source = load_model(directory)
    executable = choose_backend("reference").prepare(source, "exact", LIMITS)
    for chunks in (None, (7, 1, 1, 1)):
        found = stepping.run(executable, PROMPTS, chunks, SEED)
        worst = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))
        assert worst <= TOLERANCE
    return source.warnings


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix: str, tmp_path: Path) -> None:
    """With a warning that names it (K11)."""
    expected = reference_logits(write(MODELS["llama-1"], tmp_path, SEED), PROMPTS)
    renamed(tmp_path, lambda name: prefix + name)
    (warning,) = assert_equal(tmp_path, expected)
    assert prefix in warning


def test_stale_copies_in_other_shards_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The index decides, and a warning counts what was passed over (K8)."""
    expected = reference_logits(write(MODELS["llama-1"], tmp_path, SEED), PROMPTS)
    whole = tmp_path / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in safetensors.numpy.load_file(whole).items()}
    whole.unlink()
    names = sorted(tensors)
    half = len(names) // 2
    stale = {name: tensors[name] + 1 for name in names[:3]} | {"model.layers.9.left.over": tensors[names[0]]}
    shards = {
        "a.safetensors": {name: tensors[name] for name in names[:half]},
        "b.safetensors": {name: tensors[name] for name in names[half:]} | stale,
    }
    for file, content in shards.items():
        safetensors.numpy.save_file(content, tmp_path / file)
    places = {name: "a.safetensors" if name in names[:half] else "b.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert assert_equal(tmp_path, expected) == ()
    assert "4 tensors" in caplog.messages[0]


def test_text_names_of_a_pair_under_the_text_config(tmp_path: Path) -> None:
    expected = reference_logits(write(MODELS["qwen2"], tmp_path, SEED), PROMPTS)
    renamed(tmp_path, lambda name: name.replace("model.", "model.language_model.", 1))
    (warning,) = assert_equal(tmp_path, expected)
    assert "model.language_model." in warning


@pytest.mark.parametrize("kept", ["q_proj", "v_proj"])
def test_biases_that_are_not_stored_are_zero(kept: str, tmp_path: Path) -> None:
    """As transformers has them (K10)."""
    write(MODELS["llama-2-biases"], tmp_path, SEED)
    renamed(tmp_path, lambda name: None if name.endswith(".bias") and "attn" in name and kept not in name else name)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    (warning,) = assert_equal(tmp_path, reference_logits(model, PROMPTS))
    assert "o_proj.bias" in warning
    assert kept not in warning


@pytest.mark.parametrize("names", ["new", "old"])
def test_the_text_model_of_a_pair(names: str, tmp_path: Path) -> None:
    text = transformers.Gemma3TextConfig(**gated(**GEMMA3)).to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "model_type": "siglip_vision_model",
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    randomise(model, SEED)
    model.tie_weights()
    model.save_pretrained(tmp_path)
    before = set(safetensors.numpy.load_file(tmp_path / "model.safetensors"))
    new, old = "model.language_model.", "language_model.model."
    assert any(name.startswith((new, old)) for name in before)
    renamed(tmp_path, lambda name: name.replace(old, new) if names == "new" else name.replace(new, old))
    text_config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert text_config["num_hidden_layers"] == 3
    (warning,) = assert_equal(tmp_path, reference_logits(model, PROMPTS))
    assert "vision_tower" in warning
