# SPDX-License-Identifier: Apache-2.0
"""Rotations at run time: the function stays, what is loud in front of down_proj becomes roundable, the file says so."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import error
from safetensors.numpy import load_file, save_file
from walking import StopAt, hashes

from linnet.compress import CancelToken, Interrupted, compress, recipe_from
from linnet.compress.transforms.online import output_projections
from linnet.compress.transforms.quarot import Quarot, QuarotOptions
from linnet.errors import UnsupportedError
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.program.attributes import Hadamard

ROWS = {"calibration_rows": 6, "calibration_length": 64, "chunk_tokens": 128}
FAMILIES = ("llama-2-biases", "qwen3", "phi-3", "llama-3-tied")


def recipe(scheme: str, online: bool, keys: bool = False, algorithm: str = "rtn"):
    rotate = {"step": "rotate", "algorithm": "quarot", "options": {"values": True, "online": online, "keys": keys}}
    steps = [rotate, {"step": "quantise", "algorithm": algorithm, "scheme": scheme}]
    return recipe_from({"steps": steps, **ROWS})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays_as_it_was(tmp_path, family):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), tmp_path)
    source = load_model(tmp_path)
    transform = Quarot(QuarotOptions(online=True, keys=True))
    prepared = transform.prepare(source)
    rotated = transform.apply(replace(prepared, checkpoint=source.checkpoint), {}, 0)
    assert error(rotated, source) ** 0.5 < 1e-5
    made = [op for op in rotated.program.ops if isinstance(op.attributes, Hadamard)]
    assert len(made) == 3 * len(source.spec.layers)
    assert error(replace(rotated, program=source.program), source) > 0.01  # the weights alone are another function
    plain = Quarot(QuarotOptions()).apply(prepared, {}, 0)
    changed = {
        name
        for name in source.checkpoint.names()
        if not np.array_equal(plain.checkpoint.tensor(name), rotated.checkpoint.tensor(name))
    }
    downs = (block.feed_forward.down.module.format(layer=layer) for layer, block in enumerate(source.spec.layers))
    assert changed == {f"{down}.weight" for down in downs}


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_mixed_and_the_function_stays(tmp_path, family, values):
    tiny_models = pytest.importorskip("tiny_models", reason="needs transformers")
    tiny_models.write(next(tiny for tiny in tiny_models.TINY_MODELS if tiny.name == family), tmp_path)
    source = load_model(tmp_path)
    transforms = [Quarot(QuarotOptions(values=values, heads=heads)) for heads in (False, True)]
    plain, rotated = (
        each.apply(replace(each.prepare(source), checkpoint=source.checkpoint), {}, 0) for each in transforms
    )
    assert error(rotated, source) ** 0.5 < 1e-5
    outputs = [(layer, mixer.output, mixer.value_size) for layer, mixer in source.spec.attentions.items()]
    made = [op.attributes.size for op in rotated.program.ops if isinstance(op.attributes, Hadamard)]
    assert made == [output.columns & -output.columns for _, output, _ in outputs]
    assert all(run > size for run, (_, _, size) in zip(made, outputs, strict=True))
    assert error(replace(rotated, program=source.program), source) > 0.01  # the weights alone are another function
    changed = {
        name
        for name in source.checkpoint.names()
        if not np.array_equal(plain.checkpoint.tensor(name), rotated.checkpoint.tensor(name))
    }
    assert changed == {f"{output.module.format(layer=layer)}.weight" for layer, output, _ in outputs}


def test_a_loud_head_becomes_roundable(fp32_model, tmp_path, text):
    """All channels of one KV head 60 times as loud, their readers as much quieter: no rotation inside heads helps."""
    model = shutil.copytree(fp32_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    for layer in range(2):
        value, out = (tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "vo")
        value[: len(value) // 2] *= 60  # of 2 KV heads
        out[:, : out.shape[1] // 2] /= 60
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert error(model, fp32_model) ** 0.5 < 1e-5
    costs = {}
    for heads in (False, True):
        rotate = {"step": "rotate", "algorithm": "quarot", "options": {"values": True, "heads": heads}}
        chain = recipe_from({"steps": [rotate, {"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"}], **ROWS})
        made = compress(model, tmp_path / f"{heads}", chain, calibration_text=text)
        costs[heads] = error(made.path, model)
    assert costs[True] < 0.7 * costs[False]


def test_heads_that_no_run_spans_are_said(fp32_model):
    source = load_model(fp32_model)
    first, *others = source.spec.layers
    odd = replace(first.mixer, heads=1, value_head_size=first.mixer.output.columns)
    with pytest.raises(UnsupportedError, match=r"layers.0.self_attn.o_proj reads 1 heads .* span no two heads"):
        output_projections(replace(source, spec=replace(source.spec, layers=(replace(first, mixer=odd), *others))))


@pytest.fixture(scope="module")
def loud_products(fp32_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, one column of what down_proj reads 60 times as loud."""
    model = shutil.copytree(fp32_model, tmp_path_factory.mktemp("loud") / "model")
    tensors = load_file(model / "model.safetensors")
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"][3] *= 60
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"][:, 3] /= 60
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert error(model, fp32_model) ** 0.5 < 1e-5
    return model


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-static"])
def test_a_loud_column_of_the_products_becomes_roundable(loud_products, tmp_path, text, scheme):
    costs = {}
    for online in (False, True):
        result = compress(loud_products, tmp_path / f"{online}", recipe(scheme, online), calibration_text=text)
        costs[online] = error(result.path, loud_products)
    assert costs[True] < 0.5 * costs[False]


def test_the_file_says_it_and_is_read_back(tiny_model, tmp_path, text):
    made = compress(tiny_model, tmp_path / "out", recipe("W4A4-g16-ag32", True, True), calibration_text=text)
    config = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"]) == ("linnet", 4)
    groups = config["transform_config"]["config_groups"]
    assert {(name, group["type"], group["head_dim"]) for name, group in groups.items()} == {
        ("input_0", "hadamard", 64),
        ("attention_1", "hadamard", 8),
    }
    card = (made.path / "README.md").read_text()
    assert (
        "| rotated at run time | input of 2 modules in runs of 64, queries and keys of 2 layers in runs of 8 |" in card
    )
    assert "| loads in | Linnet alone" in card
    program = load_model(made.path).program
    found = {op.name: op.attributes.size for op in program.ops if isinstance(op.attributes, Hadamard)}
    assert found == {
        f"layers.{layer}.{name}": size
        for layer in range(2)
        for name, size in (("attention.query_rotated", 8), ("attention.key_rotated", 8), ("mlp.down.rotated", 64))
    }


def test_it_resumes_to_the_same_bytes(tiny_model, tmp_path, text):
    chain = recipe("W4A4-g16-ag32", True, True, "gptq")
    whole = compress(tiny_model, tmp_path / "whole", chain, calibration_text=text)
    target, stops = tmp_path / "out", 0
    while not target.exists():
        token = CancelToken()
        with suppress(Interrupted):
            compress(tiny_model, target, chain, calibration_text=text, cancel=token, observer=StopAt(token, 5 + stops))
        stops += 1
        assert stops < 30
    assert stops >= 2
    assert hashes(target) == hashes(whole.path)


def test_zeros_alone_keep_the_rotation_on_disk(tiny_model, tmp_path, text):
    """A result without a single code has a record all the same."""
    rotate = {"step": "rotate", "algorithm": "quarot", "options": {"online": True}}
    steps = [rotate, {"step": "sparsify", "algorithm": "magnitude", "options": {"pattern": "50%"}}]
    made = compress(tiny_model, tmp_path / "out", recipe_from({"steps": steps, **ROWS}), calibration_text=text)
    assert sum(op.kind == "hadamard" for op in load_model(made.path).program.ops) == 2


def test_a_rotated_model_as_a_source(tiny_model, tmp_path, text):
    """Dequantised it is still rotated; what is rotated is not rotated again."""
    first = compress(tiny_model, tmp_path / "first", recipe("W8A16", True), calibration_text=text)
    with Checkpoint.open(first.path) as checkpoint:
        plain = load_model(checkpoint.dequantised())
        assert error(plain, first.path) ** 0.5 < 0.01
    quantise = recipe_from({"steps": [{"step": "quantise", "algorithm": "rtn", "scheme": "W8A8"}], **ROWS})
    again = compress(first.path, tmp_path / "again", quantise, calibration_text=text, from_compressed=True)
    assert error(again.path, first.path) ** 0.5 < 0.05
    with pytest.raises(UnsupportedError, match=r"model.layers.0.mlp.down_proj is rotated at run time already"):
        compress(first.path, tmp_path / "twice", recipe("W8A16", True), calibration_text=text, from_compressed=True)
