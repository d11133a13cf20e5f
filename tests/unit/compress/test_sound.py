# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity anywhere in the source are named before work begins; huge finite weights are no trouble, or said."""

import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from walking import FEW

from linnet.compress import compress, recipe_from
from linnet.compress.tables import ALGORITHMS
from linnet.errors import CheckpointError, LinnetError
from linnet.formats import Checkpoint

FAST = {"autoround": {"iterations": 2, "batch": 1}, "obc": {"order": "dearest"}}
TABLES = {"kmeans": "KMEANS4", "squeezellm": "KMEANS4"}
"""What is quantised otherwise than to W4A16-g16."""
CHAINS = [
    *(["quantise", name] for name in ALGORITHMS["quantise"]),
    *(["sparsify", name] for name in ALGORITHMS["sparsify"]),
    *(["smooth", name, "quantise", "rtn"] for name in ALGORITHMS["smooth"]),
    *(["rotate", name, "quantise", "gptq"] for name in ALGORITHMS["rotate"]),
]
PLACES = [
    ("model.embed_tokens.weight", (3, 1), float("nan")),
    ("model.embed_tokens.weight", (255, 31), float("inf")),  # a row that no text asks for
    ("model.layers.1.input_layernorm.weight", (3,), float("nan")),
    ("model.norm.weight", (0,), float("-inf")),
    ("model.layers.1.mlp.up_proj.weight", (1, 2), float("nan")),
    ("lm_head.weight", (5, 6), float("inf")),
]


def chain_of(names: list[str], **fields):
    steps = [
        {"step": kind, "algorithm": name, "options": FAST.get(name, {})}
        | ({"scheme": TABLES.get(name, "W4A16-g16")} if kind == "quantise" else {})
        for kind, name in zip(names[::2], names[1::2], strict=True)
    ]
    return recipe_from({"steps": steps, **FEW, **fields})


def with_value(model: Path, copy: Path, name: str, place: tuple[int, ...], value: float) -> Path:
    shutil.copytree(model, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors[name][place] = value
    save_file(tensors, copy / "model.safetensors")
    return copy


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
@pytest.mark.parametrize(("name", "place", "value"), PLACES)
def test_it_is_named_before_work_begins(tiny_model, tmp_path, text, names, name, place, value):
    sick = with_value(tiny_model, tmp_path / "sick", name, place, value)
    said = rf"{name} holds NaN or infinity, first {value} at \[{', '.join(map(str, place))}\]"
    with pytest.raises(CheckpointError, match=said):
        compress(sick, tmp_path / "out", chain_of(names), calibration_text=text)
    assert [path.name for path in tmp_path.iterdir()] == ["sick"]


def test_what_linnet_wrote_is_read_too(tiny_model, tmp_path, text):
    """A manifest gives the hashes without the bytes; these are looked at all the same."""
    pruned = compress(tiny_model, tmp_path / "pruned", chain_of(["sparsify", "magnitude"])).path
    name = "model.layers.0.self_attn.q_proj.weight"
    info = Checkpoint.open(pruned).info(name)
    with open(pruned / info.file, "r+b") as file:
        file.seek(info.offset)
        file.write(b"\xff\x7f")
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity, first nan at"):
        compress(pruned, tmp_path / "out", chain_of(["quantise", "rtn"]))


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_huge_weight_leaks_no_warning(tiny_model, tmp_path, text, names, name):
    """It is compressed, or what reads it is named."""
    model = with_value(tiny_model, tmp_path / "huge", name, (7, 2), 1e38)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(LinnetError):
            result = compress(model, tmp_path / "out", chain_of(names), calibration_text=text)
            Checkpoint.open(result.path, verify=True).close()


def test_layers_that_are_taken_out_are_looked_at_too(tiny_model, tmp_path, text):
    """Which ones stay is not known when the source is read."""
    name = "model.layers.1.input_layernorm.weight"
    sick = with_value(tiny_model, tmp_path / "sick", name, (3,), float("nan"))
    prune = {"step": "prune", "algorithm": "influence", "options": {"what": "layers", "count": 1}}
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        compress(sick, tmp_path / "out", recipe_from({"steps": [prune], **FEW}), calibration_text=text)
