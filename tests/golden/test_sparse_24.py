# SPDX-License-Identifier: Apache-2.0
"""``sparse-24-bitmask`` as compressed-tensors up to 0.14 wrote it, and Linnet's own files with it: read bit for bit,
and refused by what reads it no more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

import stepping  # noqa: E402
from foreign_forms import LIMITS, SEED, check_pair, llama, write_pair  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from linnet.backends.select import choose_backend  # noqa: E402
from linnet.cli.doctoring import examine  # noqa: E402
from linnet.compress import compress, recipe_from  # noqa: E402
from linnet.errors import LinnetError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.convert.target import parse_target  # noqa: E402
from linnet.formats.convert.to_directory import to_directory  # noqa: E402
from linnet.models import load_model  # noqa: E402

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [2, 7, 1, 8]]
SPARSITY = {
    "format": "sparse-24-bitmask", "global_sparsity": 0.4, "ignore": ["lm_head"], "registry_requires_subclass": False,
    "sparsity_structure": "2:4", "targets": ["Linear"],
}  # fmt: skip
PLAIN = {"quant_method": "compressed-tensors", "version": "0.9.4", "sparsity_config": SPARSITY}


def coded(kind: str, bits: int) -> dict[str, Any]:
    """The record of W8A8 over which the sparse compressor went."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "channel", "dynamic": False}
    inputs = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return PLAIN | {
        "format": f"{kind}-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def kept_of(weight: Any) -> Any:
    """bool: the two greatest of every four (compressed-tensors' get_24_bytemasks)."""
    fours = weight.abs().reshape(-1, 4)
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.topk(2, dim=1).indices, True).view(weight.shape)


def leaves(values: Any, kept: Any) -> dict[str, Any]:
    """What the sparse compressor stores of a weight."""
    stored = values.view(torch.int8) if values.dtype == torch.float8_e4m3fn else values
    mask = torch.from_numpy(np.packbits(kept.numpy(), axis=-1, bitorder="little"))
    compressed = stored[kept].view(values.dtype).reshape(len(values), -1)
    return {"compressed": compressed, "bitmask": mask, "shape": torch.tensor(values.shape).reshape(-1, 1)}


def plain_encoder(dtype: Any) -> Callable[[str, Any], tuple[dict[str, Any], Any]]:
    def encode(_: str, weight: Any) -> tuple[dict[str, Any], Any]:
        kept = kept_of(weight)
        values = (weight * kept).to(dtype)
        return leaves(values, kept), values.float()

    return encode


def coded_encoder(dtype: Any, largest: float) -> Callable[[str, Any], tuple[dict[str, Any], Any]]:
    def encode(_: str, weight: Any) -> tuple[dict[str, Any], Any]:
        kept = kept_of(weight)
        scale = (weight.abs().amax(1, keepdim=True) / largest).bfloat16()
        codes = weight * kept / scale.float()
        codes = (codes.round() if dtype == torch.int8 else codes).clamp(-largest, largest).to(dtype)
        return leaves(codes, kept) | {"weight_scale": scale}, codes.float() * scale.float()

    return encode


FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "bf16": (PLAIN, plain_encoder(torch.bfloat16)),
    "fp16": (PLAIN, plain_encoder(torch.float16)),
    "fp32": (PLAIN, plain_encoder(torch.float32)),
    "int8": (coded("int", 8), coded_encoder(torch.int8, 127)),
    "fp8": (coded("float", 8), coded_encoder(torch.float8_e4m3fn, 448)),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_plain_numbers_mean_and_compute_the_same(name: str, backend: str, tmp_path: Path) -> None:
    record, encode = FORMS[name]
    check_pair(write_pair(llama(), tmp_path, record, encode), backend)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_codes_mean_the_same(name: str, tmp_path: Path) -> None:
    record, encode = FORMS[name]
    pair = write_pair(llama(), tmp_path, record, encode)
    with Checkpoint.open(pair.quantised) as checkpoint:
        for module, value in pair.meaning.items():
            packed = checkpoint.linear(module)
            assert checkpoint.shape_of(module) == value.shape
            assert packed.scheme.weight.sparsity == "2:4"
            assert np.array_equal(packed.dequantize(), value), module


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize("name", ["bf16", "W4A16-g32", "W8A16", "W8A8"])
def test_logits_are_those_of_the_same_codes_with_their_zeros(name: str, policy: Any, tmp_path: Path) -> None:
    """Bit for bit: what is left out adds nothing."""
    model = llama().bfloat16()
    model.save_pretrained(tmp_path / "model")
    steps: list[dict[str, Any]] = [{"step": "sparsify", "algorithm": "magnitude", "options": {"pattern": "2:4"}}]
    if name != "bf16":
        steps.append({"step": "quantise", "algorithm": "rtn", "scheme": name})
    made = compress(tmp_path / "model", tmp_path / "sparse", recipe_from({"steps": steps})).path
    form = "dense:BF16" if name == "bf16" else "compressed-tensors"
    with Checkpoint.open(made) as checkpoint:
        assert to_directory(checkpoint, tmp_path / "whole", parse_target(form), {}, exact=True).exact
    with Checkpoint.open(tmp_path / "whole") as checkpoint:
        assert not any(scheme.weight.sparsity for scheme in checkpoint.schemes().values())
    found = []
    for path in (made, tmp_path / "whole"):
        executable = choose_backend("cpu").prepare(load_model(path), policy, LIMITS)
        found.append(stepping.run(executable, PROMPTS, (5, 1, 1), SEED))
    assert all(np.array_equal(one.view(np.int32), other.view(np.int32)) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("scheme", [None, "W8A8", "W4A16-g32"])
def test_what_reads_it_no_more_refuses_it(scheme: str | None, tmp_path: Path) -> None:
    """compressed-tensors from 0.15 on passes over ``sparsity_config``, and would take the weights for missing."""
    llama().save_pretrained(tmp_path / "model")
    steps: list[dict[str, Any]] = [{"step": "sparsify", "algorithm": "magnitude", "options": {"pattern": "2:4"}}]
    if scheme is not None:
        steps.append({"step": "quantise", "algorithm": "rtn", "scheme": scheme})
    made = compress(tmp_path / "model", tmp_path / "sparse", recipe_from({"steps": steps})).path
    assert not examine(made)[1].loads
    with pytest.raises((ValueError, KeyError, OSError), match=r"sparsity|linnet"):
        AutoModelForCausalLM.from_pretrained(made)


@pytest.mark.parametrize("name", FORMS)
def test_others_records_mean_what_ours_do(name: str, tmp_path: Path) -> None:
    record, encode = FORMS[name]
    pair = write_pair(llama(), tmp_path, record, encode)
    config = json.loads((pair.quantised / "config.json").read_text())
    config["quantization_config"]["sparsity_config"]["sparsity_structure"] = "2:5"
    (pair.quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(LinnetError, match="sparsity_structure '2:5' is not supported; supported: 2:4"):
        load_model(pair.quantised)
