# SPDX-License-Identifier: Apache-2.0
"""Activations that a checkpoint prescribes: the rounding against compressed-tensors' own, whole models against its
forward pass, on every backend. Needs torch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

import stepping  # noqa: E402
from compressed_tensors.compressors import ModelCompressor  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationArgs,
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402
from tiny_llama import write_tiny_llama  # noqa: E402
from tiny_models import VOCABULARY, gated, reference_logits  # noqa: E402

from linnet.backends.interface import Limits  # noqa: E402
from linnet.backends.reference import ops  # noqa: E402
from linnet.backends.select import choose_backend  # noqa: E402
from linnet.compress import compress, recipe_from  # noqa: E402
from linnet.formats.scheme_record import scheme_to_record  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.program.check import check  # noqa: E402
from linnet.schemes import Scheme  # noqa: E402

SEED = 11
LIMITS = Limits(max_tokens=128, max_sequences=8, max_outputs=128, block_size=4, max_blocks_per_sequence=16)
TOLERANCE, ONE_CODE = 1e-4, 0.5
"""Of most positions; and of one that a code has reached which fell the other way, where two sums differ in a last bit.
Without the rounding most positions are off by a tenth."""

FP8, INT8 = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}
INT4 = {"num_bits": 4, "type": "int"}
PRESCRIBED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "FP8_DYNAMIC": ({**FP8, "strategy": "channel"}, {**FP8, "strategy": "token", "dynamic": True}),
    "FP8_BLOCK": (
        {**FP8, "strategy": "block", "block_structure": [16, 16]},
        {**FP8, "strategy": "group", "group_size": 16, "dynamic": True},
    ),
    "FP8 static": ({**FP8, "strategy": "tensor"}, {**FP8, "strategy": "tensor"}),
    "W8A8 static": ({**INT8, "strategy": "channel"}, {**INT8, "strategy": "tensor"}),
    "W8A8 static, zero points": (
        {**INT8, "strategy": "channel"},
        {**INT8, "strategy": "tensor", "symmetric": False},
    ),
    # not per token: a row's most negative number lies on the edge of two codes of 4 bits, where a last bit decides
    "W4A4 static": ({**INT4, "strategy": "channel"}, {**INT4, "strategy": "tensor"}),
    "W8A8 dynamic, zero points": (
        {**INT8, "strategy": "channel"},
        {**INT8, "strategy": "token", "dynamic": True, "symmetric": False},
    ),
}


def hostile_rows(rows: int, columns: int) -> "torch.Tensor":
    """Heavy tails, a row of zeros, a one-sided row, a row far below fp8's smallest step, one column of outliers."""
    values = np.random.default_rng(SEED).standard_t(2, (rows, columns)).astype(np.float32)
    values[0] = 0
    values[1] = np.abs(values[1])
    values[2] *= 1e-6
    values[:, 5] *= 100
    return torch.from_numpy(values)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("element", ["int8", "fp8_e4m3", "int4"])
@pytest.mark.parametrize("group", [None, 16])
def test_dynamic_rounding_is_compressed_tensors_own(element: Any, symmetric: bool, group: int | None) -> None:
    if element != "int8" and not symmetric:
        pytest.skip("only int8 activations have zero points")
    x = hostile_rows(24, 96)
    scheme = Scheme(element, "group" if group else "token", group, symmetric=symmetric, dynamic=True)
    args = QuantizationArgs(**scheme_to_record(scheme))
    runs = x.unflatten(1, (-1, group or 96))
    scale, zero = calculate_qparams(runs.amin(2), runs.amax(2), args)
    expected = fake_quantize(x, scale, None if symmetric else zero, args)
    ours = ops.dequantise(ops.quantise(x, scheme))
    assert torch.equal(ours[1:], expected[1:])
    assert not ours[0].any()


@pytest.mark.parametrize(
    ("element", "symmetric"), [("int8", True), ("int8", False), ("fp8_e4m3", True), ("int4", True)]
)
def test_static_rounding_is_compressed_tensors_own(element: Any, symmetric: bool) -> None:
    x, scale = hostile_rows(24, 96), torch.tensor([0.037])
    zero = None if symmetric else torch.tensor([-21], dtype=torch.int8)
    scheme = Scheme(element, "tensor", symmetric=symmetric)
    expected = fake_quantize(x, scale, zero, QuantizationArgs(**scheme_to_record(scheme)))
    assert torch.equal(ops.dequantise(ops.quantise(x, scheme, scale, zero)), expected)


def prescribed_model(name: str, directory: Path) -> Any:
    """A model whose linears round their weights and inputs, as compressed-tensors computes and stores it."""
    weights, inputs = PRESCRIBED[name]
    torch.manual_seed(SEED)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**gated(tie_word_embeddings=False, initializer_range=0.3))
    ).eval()
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        shape = module.weight.shape
        if weights["strategy"] == "block":
            runs = module.weight.detach().unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).permute(0, 2, 1, 3).flatten(2)
        else:
            runs = module.weight.detach().reshape(1 if weights["strategy"] == "tensor" else shape[0], 1, -1)
        module.weight_scale.data.copy_(calculate_qparams(runs.amin(2), runs.amax(2), scheme.weights)[0].reshape_as(
            module.weight_scale))  # fmt: skip
        if not inputs.get("dynamic"):
            module.input_scale.data.fill_(0.01 + 0.02 * float(torch.rand((), generator=generator)))
            if not inputs.get("symmetric", True):
                module.input_zero_point.data.fill_(int(torch.randint(-40, 40, (), generator=generator)))
        module.quantization_status = QuantizationStatus.FROZEN
    torch.manual_seed(SEED)
    prompts = prompts_of()
    expected = reference_logits(model, prompts)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(str(directory))
    return prompts, expected


def prompts_of() -> list[list[int]]:
    generator = random.Random(SEED)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in (13, 3, 8)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", PRESCRIBED)
def test_models_are_computed_as_prescribed(name: str, backend: str, tmp_path: Path) -> None:
    """Dynamic rounding (K2) and static scales, with zero points too (K3)."""
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    prompts, expected = prescribed_model(name, tmp_path)
    source = load_model(tmp_path)
    executable = choose_backend(backend).prepare(source, "exact", LIMITS)
    check(executable.program)
    for chunks in (None, (5, 1, 1)):
        found = stepping.run(executable, prompts, chunks, SEED)
        gaps = np.concatenate([np.abs(a - b.numpy()).max(axis=1) for a, b in zip(found, expected, strict=True)])
        print(f"{name} {backend}: {gaps.max():.1e}, median {np.median(gaps):.1e}")
        assert np.median(gaps) <= TOLERANCE
        assert gaps.max() <= ONE_CODE


@pytest.mark.parametrize("name", ["W8A8-static", "FP8_STATIC", "W8A8C8", "W4A4-g16", "W8A8-kv8"])
def test_transformers_loads_what_calibration_writes(name: str, tmp_path: Path) -> None:
    """Scales of activations are where compressed-tensors wants them; transformers leaves those of the cache unread."""
    original = write_tiny_llama(tmp_path / "model", dtype="float32", spread=0.2)
    text = "the cat in the hat on a mat, and then another then there in the thin thing. " * 100
    steps = [{"step": "calibrate", "algorithm": "static"}, {"step": "quantise", "algorithm": "rtn", "scheme": name}]
    recipe = recipe_from({"steps": steps, "calibration_rows": 4, "calibration_length": 64})
    compress(original, tmp_path / "out", recipe, calibration_text=text)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert all(key.endswith((".k_scale", ".v_scale")) for key in info["unexpected_keys"])
    assert not info["mismatched_keys"]
    source = load_model(tmp_path / "out")
    cached = [key for key in source.checkpoint.names() if key.endswith((".k_scale", ".v_scale"))]
    scales = [key for key in source.checkpoint.names() if key.endswith(".input_scale")]
    assert len(cached) == (4 if name in ("W8A8C8", "W8A8-kv8") else 0)
    assert len(scales) == (14 if name in ("W8A8-static", "FP8_STATIC", "W8A8C8") else 0)
    for key in scales:
        module, _, leaf = key.rpartition(".")
        assert float(getattr(loaded.get_submodule(module), leaf)) == float(source.checkpoint.tensor(key)[0])
