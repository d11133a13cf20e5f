# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of vLLM, asked of vLLM itself: its loader opens each kind of model, and what its linears
multiply by is compared with what the files mean.

Needs vLLM in an environment of its own: LINNET_VLLM_PYTHON=path/to/vllm/bin/python (bench/peers/install.py makes one).
A GPU's kernels cannot be asked for on a CPU: that vLLM takes the config, and misses nothing but a kernel, can.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("compressed_tensors", reason="needs the dev extra")

import foreign_forms
import test_awq
import test_bitnet
import test_bitsandbytes
import test_compressed_tensors
import test_compressed_tensors_forms as test_ct
import test_fp8
import test_gptq
import test_hqq
import test_quanto
import test_sparse_24
import torch
from asking import answers_to, chosen_cases

from linnet import demo
from linnet.cli.doctoring import examine
from linnet.formats import Checkpoint
from linnet.formats.convert import parse_target, to_directory, to_gguf
from linnet.formats.prescription import Rotation
from linnet.formats.programs import Verdict
from linnet.formats.programs.of_vllm import GPU_ONLY, METHODS, PLUGINS, VERSION
from linnet.formats.transform_record import rotations_to_record

PYTHON = os.environ.get("LINNET_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="LINNET_VLLM_PYTHON names no interpreter that has vLLM"),
]

NO_KERNEL = re.compile(
    r"find a kernel|kernel \S+ is not supported|Marlin does not support|argument\(s\) but|attribute 'gptq_marlin", re.I
)
"""How vLLM says that it took the model, and misses code for this processor."""
SIZES = {"hidden_size": 256, "intermediate_size": 384}
"""Of the models written here: what its kernels for CPUs divide, and a head of 64."""
Make = Callable[[Path], tuple[Path, dict[str, np.ndarray] | None]]
"""A folder -> a model in it, and what its linears multiply by, by module; None: that is not compared."""


def foreign(record: dict[str, Any] | None, encode: Any, **more: Any) -> Make:
    def make(folder: Path) -> tuple[Path, dict[str, np.ndarray] | None]:
        pair = foreign_forms.write_pair(foreign_forms.llama(**SIZES), folder, record, encode, **more)
        return pair.quantised, pair.meaning

    return make


def of(test: Any, *form: Any) -> Make:
    return foreign(test.record(*form), test.encoder(*form))


def ours(scheme: str, target: str | None = None, **record: Any) -> Make:
    """What compress writes, with more in its ``quantization_config``, or what convert makes of it."""

    def make(folder: Path) -> tuple[Path, dict[str, np.ndarray] | None]:
        path = folder / "made"
        test_compressed_tensors.write_ours(foreign_forms.llama(**SIZES).bfloat16(), path, scheme, tied=False)
        if record:
            config = json.loads((path / "config.json").read_text())
            config["quantization_config"] |= record
            (path / "config.json").write_text(json.dumps(config))
        if target is not None:
            source, path = path, folder / "converted"
            with Checkpoint.open(source) as checkpoint:
                to_directory(checkpoint, path, parse_target(target), {})
        with Checkpoint.open(path, verify=False) as checkpoint:
            linears = {module: checkpoint.linear(module) for module in checkpoint.schemes()}
            return path, {module: weight.dequantize() for module, weight in linears.items()}  # type: ignore[union-attr]

    return make


def dense(folder: Path) -> tuple[Path, dict[str, np.ndarray] | None]:
    return demo.model_directory(), None


def gguf(folder: Path) -> tuple[Path, dict[str, np.ndarray] | None]:
    with Checkpoint.open(demo.model_directory()) as checkpoint:
        to_gguf(checkpoint, folder / "m.gguf", "Q8_0", {})
    return folder / "m.gguf", None


def rows_of(bits: int, kind: Any) -> Any:
    """Codes of a scale per row, for inputs with one stored scale."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        most = 448.0 if kind == torch.float8_e4m3fn else 2.0 ** (bits - 1) - 1
        scale = (weight.abs().amax(1, keepdim=True) / most).bfloat16()
        codes = weight / scale.float()
        codes = (codes.round() if kind == torch.int8 else codes).clamp(-most, most).to(kind)
        leaves = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor([4.0 / most])}
        return leaves, codes.float() * scale.float()

    return encode


def static(kind: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True, "dynamic": False}
    inputs = {**weights, "strategy": "tensor"}
    record = test_ct.record(f"{kind}-quantized", weights)
    record["config_groups"]["group_0"]["input_activations"] = inputs
    return record


MX = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
IN_ORDER = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
CACHE = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
CASES: dict[str, Make] = {
    "dense": dense,
    "gguf": gguf,
    **{
        f"ours {scheme}": ours(scheme)
        for scheme in (
            *("W4A16-g32", "W4A16-channel", "W4A16-g32-asym", "W3A16-g32", "W8A16", "W8A16-g32", "W8A16-asym"),
            *("W8A8", "W8A8-ag32", "W4A8-g32", "W4A4-g32", "FP8", "FP8_DYNAMIC"),
            *("NF4", "W4A16-g32-head8"),
        )
    },
    "static int8": foreign(static("int"), rows_of(8, torch.int8)),
    "static fp8": foreign(static("float"), rows_of(8, torch.float8_e4m3fn)),
    "nvfp4": foreign(test_ct.record("nvfp4-pack-quantized", test_ct.NV), test_ct.four_bit_floats(True)),
    "mxfp4": foreign(test_ct.record("mxfp4-pack-quantized", MX), test_ct.four_bit_floats(False)),
    "activation order": foreign(
        test_ct.record("pack-quantized", IN_ORDER), test_ct.in_activation_order(4, packed=True)
    ),
    "int8 cache": ours("W4A16-g32", kv_cache_scheme=CACHE | {"type": "int"}),
    "fp8 cache by token": ours("W4A16-g32", kv_cache_scheme=CACHE),
    "rotated": ours("W4A16-g32", transform_config=rotations_to_record([Rotation(("re:.*down_proj$",), size=128)])),
    "sparse": foreign(*test_sparse_24.FORMS["bf16"]),
    "gptq": of(test_gptq, 4, 32, True, False, False),
    "gptq channel": of(test_gptq, 4, -1, True, False, False),
    "gptq channel in order": of(test_gptq, 4, -1, True, True, False),
    "gptq v2": of(test_gptq, 4, 32, True, False, True),
    "gptq groups of 16": of(test_gptq, 4, 16, True, False, False),
    "gptq asymmetric": of(test_gptq, 4, 32, False, False, False),
    "gptq in order": of(test_gptq, 4, 32, True, True, False),
    "gptq 8": of(test_gptq, 8, 32, True, False, False),
    "gptq 3": of(test_gptq, 3, 32, True, False, False),
    "gptq 2": of(test_gptq, 2, 32, True, False, False),
    "gptq by its second name": foreign(
        test_gptq.record(4, 32, True, False, True) | {"quant_method": "gptq_v2"},
        test_gptq.encoder(4, 32, True, False, True),
    ),
    "awq": of(test_awq, 32, False, True),
    "awq channel": of(test_awq, -1, False, True),
    "awq without zero points": of(test_awq, 32, False, False),
    "awq gemv": of(test_awq, 32, True, True),
    "bitsandbytes": of(test_bitsandbytes, "nf4", True),
    "bitsandbytes int8": foreign(test_bitsandbytes.EIGHT, test_bitsandbytes.int8_encoder),
    "fp8 blocks": foreign(FP8_BLOCKS, test_fp8.block_encoder(128, 128, torch.float32)),
    "fp8 tensors": foreign(*test_fp8.FORMS["tensors"]),
    "fp8 static": foreign(*test_fp8.FORMS["tensors, static"]),
    "fp8 rows": foreign(test_fp8.FORMS["rows"][0] | {"modules_to_not_convert": ["lm_head"]}, test_fp8.row_encoder),
    "bitnet": foreign(*test_bitnet.FORMS["autobitlinear"]),
    "hqq": of(test_hqq, 4),
    "hqq without a record": foreign(None, test_hqq.encoder(4)),
    "quanto": foreign(test_quanto.record("int8"), test_quanto.FORMS["qint8"][0]),
    "quanto without a record": foreign(None, test_quanto.FORMS["qint8"][0]),
    "to gptq": ours("W4A16-g32", "gptq"),
    "to awq": ours("W4A16-g32-asym", "awq"),
    "narrow to awq": ours("W3A16-g32", "awq"),
    "head to gptq": ours("W4A16-g32-head8", "gptq"),
    "to fp8": ours("W8A16", "fp8"),
    "to mxfp4": ours("W4A16-g32", "mxfp4"),
}


@pytest.fixture(scope="module")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Verdict], dict[str, Any]]:
    """The doctor's verdicts by case, of those that run, and what vLLM answered, in one process."""
    folder = tmp_path_factory.mktemp("vllm")
    questions, said = {}, {}
    for name, make, inside in chosen_cases(request, CASES, folder):
        path, meaning = make(inside)
        expected = None
        if meaning is not None:
            expected = str(inside / "expected.npz")
            np.savez(expected, **meaning)
        said[name] = examine(path)[2]
        deprecated = "--allow-deprecated-quantization" in said[name].why
        questions[name] = {"path": str(path), "expected": expected, "deprecated": deprecated}
    return said, answers_to(questions, PYTHON, "ask_vllm.py", folder, 1500)


def tolerated(name: str) -> float:
    """How far a product may be off: bf16 and rounded inputs; wrong weights are off by about 1."""
    return 0.3 if "A4-" in name else 0.1


@pytest.mark.parametrize("name", CASES)
def test_vllm_does_as_it_is_said_to(name: str, asked: tuple[dict[str, Verdict], dict[str, Any]]) -> None:
    verdict, answer = asked[0][name], asked[1]["answers"][name]
    print(name, verdict.loads, verdict.why, answer)
    right = answer["stage"] == "loaded" and (answer["worst"] is None or answer["worst"] < tolerated(name))
    plugin = next((package for package, _ in PLUGINS.values() if package in verdict.why), None)
    if not verdict.loads or (plugin is not None and plugin not in asked[1]["plugins"]):
        assert not right
    elif GPU_ONLY in verdict.why and not ("AMX" in verdict.why and asked[1]["amx"]):
        assert answer["stage"] == "run" or (answer["stage"] == "load" and NO_KERNEL.search(answer["why"]))
    else:
        assert right


def test_what_is_proposed_instead_is_read(asked: tuple[dict[str, Verdict], dict[str, Any]]) -> None:
    """Of the commands that the verdicts name, each kind was tried: the cases that start with "to"."""
    assert all(not verdict.loads or verdict.instead is None for verdict in asked[0].values())


def test_its_methods_are_known(asked: tuple[dict[str, Verdict], dict[str, Any]]) -> None:
    assert asked[1]["version"].startswith(VERSION)
    assert {*METHODS} <= {*asked[1]["methods"]}
