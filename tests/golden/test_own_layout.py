# SPDX-License-Identifier: Apache-2.0
"""A directory in Linnet's own layout: every entry point of transformers refuses it, Linnet reads old and new alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from linnet.compress import Recipe, compress, make_recipe, recipe_from
from linnet.compress.card import loaders
from linnet.formats import Checkpoint
from linnet.schemes import PackedWeight, parse_scheme

ENTRIES: dict[str, Callable[[str], object]] = {
    "AutoConfig": transformers.AutoConfig.from_pretrained,
    "AutoModelForCausalLM": transformers.AutoModelForCausalLM.from_pretrained,
    "AutoModel": transformers.AutoModel.from_pretrained,
    "LlamaForCausalLM": transformers.LlamaForCausalLM.from_pretrained,
    "LlamaModel": transformers.LlamaModel.from_pretrained,
    "LlamaForCausalLM, its own config": lambda path: transformers.LlamaForCausalLM.from_pretrained(
        path, config=transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1)
    ),
    "pipeline": lambda path: transformers.pipeline("text-generation", model=path),
}


FACTORISED = {"steps": [{"step": "factorise", "algorithm": "svd"}]}
ROTATED = {
    "steps": [
        {"step": "rotate", "algorithm": "quarot", "options": {"online": True}},
        {"step": "quantise", "algorithm": "rtn", "scheme": "W8A16"},
    ]
}
RECIPES: dict[str, Recipe] = {
    **{name: make_recipe(name, "rtn") for name in ("NF4-g32", "TERNARY", "W4A16-g32-head8", "W8A16-head4-g32")},
    "KMEANS4": make_recipe("KMEANS4", "kmeans"),
    "low rank": recipe_from(FACTORISED),
    "rotated at run time": recipe_from(ROTATED),
}


@pytest.fixture(scope="module", params=RECIPES)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    source = place / "source"
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    return compress(source, place / "out", RECIPES[request.param]).path


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_other_loader_refuses(packed: Path, entry: str) -> None:
    """None draws random weights in place of the codes (K18)."""
    with pytest.raises((OSError, ValueError)) as caught:
        ENTRIES[entry](str(packed))
    assert "linnet" in str(caught.value) or "no file named model.safetensors" in str(caught.value)


def test_accelerate_finds_no_weights(packed: Path) -> None:
    import accelerate

    with pytest.raises(ValueError, match="is not a folder containing"):
        accelerate.load_checkpoint_in_model(torch.nn.Linear(2, 2), str(packed))


def test_the_names_on_disk(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("linnet", ["LinnetForCausalLM"])
    assert config["quantization_config"]["architectures"] == ["LlamaForCausalLM"]
    assert sorted(path.name for path in packed.glob("*.safetensors")) == ["linnet.safetensors"]


def test_linnet_reads_it_and_its_older_form_bit_for_bit(packed: Path, tmp_path: Path) -> None:
    with Checkpoint.open(packed, verify=True) as checkpoint:
        if checkpoint.quantization.terms or checkpoint.quantization.rotations:
            pytest.skip("terms came with version 3, rotations with 4, no older form has them")
        config = checkpoint.config
        assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
        older = {**config, "quantization_config": {**config["quantization_config"], "version": 1}}
        (tmp_path / "config.json").write_text(json.dumps(older))
        (tmp_path / "model.safetensors").symlink_to(packed / "linnet.safetensors")
        with Checkpoint.open(tmp_path) as old:
            assert old.names() == checkpoint.names()
            module = "model.layers.0.mlp.up_proj"
            one, other = checkpoint.linear(module), old.linear(module)
            assert isinstance(one, PackedWeight)
            assert isinstance(other, PackedWeight)
            assert np.array_equal(one.dequantize(), other.dequantize())


def test_the_card_says_who_loads_it(packed: Path) -> None:
    assert "| loads in | Linnet alone" in (packed / "README.md").read_text()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("W4A16-g32", "Linnet; transformers with compressed-tensors; vLLM"),
        (
            "W3A16-g32",
            "Linnet; transformers with compressed-tensors (vLLM: 3 bits have kernels on a GPU with Humming",
        ),
        ("W2A16-g32", "vLLM: 2 bits have kernels on a GPU with Humming installed only"),
        ("W8A16", "with compressed-tensors; vLLM on a GPU only: int8 weights with 16-bit inputs"),
        ("W4A16-g32-asym", "dequantize=True"),
    ],
)
def test_what_others_load_is_said_too(scheme: str, said: str) -> None:
    assert said in loaders({"layers.0.up": parse_scheme(scheme).linear})
