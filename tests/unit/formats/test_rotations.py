# SPDX-License-Identifier: Apache-2.0
"""transform_config: what is written is read, what others write is understood or refused, damage is named."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file, save_file

from linnet.demo import model_directory
from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats.forms.canonical_written import quantization_record, with_rotations
from linnet.formats.prescription import Rotation
from linnet.formats.quantization import read_quantization
from linnet.formats.transform_record import read_rotations, rotations_to_record
from linnet.models import load_model
from linnet.schemes import parse_scheme

DOWN = "model.layers.0.mlp.down_proj"
INPUT = {"targets": [DOWN], "location": "input"}


def group(**changes: Any) -> dict[str, Any]:
    return {"type": "hadamard", "head_dim": 128, "apply": [INPUT], **changes}


def record(**changes: Any) -> dict[str, Any]:
    return {"config_groups": {"a": group(**changes)}}


def test_what_is_written_is_read() -> None:
    rotations = (Rotation((DOWN,), size=128), Rotation(("model.layers.0.self_attn",), size=64, of="attention"))
    own = with_rotations(quantization_record({DOWN: parse_scheme("W4A4").linear}, []), rotations)
    assert (own["quant_method"], own["version"]) == ("linnet", 4)
    assert read_quantization({"quantization_config": json.loads(json.dumps(own))}, "c").rotations == rotations


def test_others_words_are_understood() -> None:
    """As llm-compressor's template has R4: a pattern, one name for a list, and what is done to weights."""
    apply = [
        {"targets": "re:.*down_proj$", "location": "input"},
        {"targets": ["re:.*down_proj$"], "location": "weight_input", "inverse": True},
        {"targets": ["embed_tokens"], "location": "weight_output"},
    ]
    found = read_rotations(record(apply=apply, head_dim=None, precision="torch.float32", requires_grad=False), "w")
    assert found == (Rotation(("re:.*down_proj$",)),)
    assert found[0].takes(DOWN)
    assert not found[0].takes("model.layers.0.mlp.up_proj")
    stored = [item for item in apply if item["location"] != "input"]
    assert read_rotations(record(apply=stored, type="random-hadamard"), "w") == ()
    everything = Rotation(("Linear",), ("re:.*lm_head",))
    assert everything.takes("a.up")
    assert not everything.takes("lm_head")


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "drawn signs": (record(type="random-hadamard"), "type 'random-hadamard' is not supported; supported: hadamard"),
    "any matrix": (record(type="random-matrix"), "type 'random-matrix'"),
    "a drawn order": (record(randomize=True), "type 'hadamard' with randomize"),
    "no type": ({"config_groups": {"a": {"apply": [INPUT]}}}, "type None"),
    "outputs": (
        record(apply=[{**INPUT, "location": "output"}]),
        "location 'output' is not supported; supported: input",
    ),
    "an unknown place": (record(apply=[{**INPUT, "location": "bias"}]), "location 'bias'"),
    "keys alone": (record(apply=[{**INPUT, "location": "k_cache"}]), "k_cache of model.layers.0.mlp.down_proj is not"),
    "twice": (record(apply=[INPUT, INPUT]), "input and input"),
    "an unknown key": (record(surprise=1), "unknown key 'surprise'"),
    "an unknown key of a place": (record(apply=[{**INPUT, "surprise": 1}]), "unknown key 'surprise'"),
}
DAMAGED: dict[str, Any] = {
    "a list": [],
    "groups": {"config_groups": []},
    "a group": {"config_groups": {"a": 3}},
    "places": record(apply="input"),
    "a place": record(apply=[3]),
    "targets": record(apply=[{**INPUT, "targets": 3}]),
    "no targets": record(apply=[{"location": "input"}]),
    "a pattern": record(apply=[{**INPUT, "targets": ["re:("]}]),
    "ignored": record(apply=[{**INPUT, "ignore": [3]}]),
    **{f"a size of {size!r}": record(head_dim=size) for size in (0, 1, 3, -2, 96, 2.0, True, "128")},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_nothing_here_does_is_refused(name: str) -> None:
    config, expected = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=re.escape(expected)) as caught:
        read_rotations(config, "m/config.json: transform_config")
    assert str(caught.value).startswith("m/config.json: transform_config")


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_rotations(DAMAGED[name], "m/config.json: transform_config")
    assert str(caught.value).startswith("m/config.json: transform_config")


def opened(path: Path, *rotations: Rotation) -> Any:
    shutil.copytree(model_directory(), path)
    (path / "linnet_manifest.json").unlink(missing_ok=True)
    config = json.loads((path / "config.json").read_text())
    quantization = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}
    quantization["transform_config"] = rotations_to_record(rotations)
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return load_model(path)


def test_a_whole_model_says_it_by_patterns(tmp_path: Path) -> None:
    rotations = (Rotation(("re:.*down_proj$",), size=128), Rotation(("re:.*self_attn$",), of="attention"))
    program = opened(tmp_path / "m", *rotations).program
    assert [op.name for op in program.ops if op.kind == "hadamard"][:3] == [
        "layers.0.attention.query_rotated",
        "layers.0.attention.key_rotated",
        "layers.0.mlp.down.rotated",
    ]
    assert sum(op.kind == "hadamard" for op in program.ops) == 3 * 5


def test_a_matrix_that_was_stored_is_the_one_that_is_meant(tmp_path: Path) -> None:
    """As compressed-tensors leaves it beside a linear: under the group's name and the place."""
    opened(tmp_path / "m", Rotation((DOWN,), size=128))
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors[f"{DOWN}.input_0_input.weight"] = scipy.linalg.hadamard(128).astype(np.float32)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    assert not load_model(tmp_path / "m").warnings
    tensors[f"{DOWN}.input_0_input.weight"][3, 5] *= -1
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not Sylvester's Hadamard matrix of order 128"):
        load_model(tmp_path / "m")
    tensors[f"{DOWN}.other_input.weight"] = tensors.pop(f"{DOWN}.input_0_input.weight")
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not account for: model.layers.0.mlp.down_proj.other_input.weight"):
        load_model(tmp_path / "m")


MISFITS: dict[str, tuple[tuple[Rotation, ...], str]] = {
    "nothing of that name": (
        (Rotation(("model.layers.9.mlp.down_proj",), size=2),),
        "no linear of a layer is called so",
    ),
    "no attention of that name": ((Rotation((DOWN,), of="attention"),), "no attention of a layer is called so"),
    "runs that do not tile": ((Rotation((DOWN,), size=256),), "has 640 channels"),
    "all of a width": ((Rotation((DOWN,)),), "in runs of 640"),
    "runs longer than heads": ((Rotation(("re:.*self_attn$",), size=128, of="attention"),), "has 64 channels"),
    "twice": ((Rotation((DOWN,), size=2), Rotation(("re:.*down_proj$",), size=4)), f"{DOWN} is rotated twice"),
    "the head": ((Rotation(("Linear",), size=2),), "the head's input cannot be rotated here"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_model_is_named(name: str, tmp_path: Path) -> None:
    rotations, expected = MISFITS[name]
    with pytest.raises(LinnetError, match=re.escape(expected)):
        opened(tmp_path / "m", *rotations)
