# SPDX-License-Identifier: Apache-2.0
"""fp8 weights as DeepSeek and Qwen (blocks), vLLM (tensors) and fbgemm (rows) publish them. Needs torch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import SEED, Pair, llama, logits, write_pair  # noqa: E402
from tiny_models import VOCABULARY, reference_logits  # noqa: E402

from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402

LARGEST = 448.0


def to_fp8(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def block_encoder(height: int, width: int, dtype: "torch.dtype") -> Any:
    """One scale for each block of rows and columns, the last ones smaller."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        rows, columns = weight.shape
        scales = torch.empty(-(-rows // height), -(-columns // width), dtype=dtype)
        codes, meaning = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
                scales[i, j] = weight[at].abs().max() / LARGEST
                codes[at] = to_fp8(weight[at], scales[i, j].float())
                meaning[at] = codes[at].float() * scales[i, j].float()
        return {"weight": codes, "weight_scale_inv": scales}, meaning

    return encode


def row_encoder(module: str, weight: "torch.Tensor") -> Any:
    scales = weight.abs().amax(1, keepdim=True) / LARGEST
    codes = to_fp8(weight, scales)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def tensor_encoder(static: bool) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        scale = weight.abs().max() / LARGEST
        codes = to_fp8(weight, scale)
        leaves = {"weight": codes, "weight_scale": scale}
        if static:
            leaves["input_scale"] = torch.tensor(0.01 + 0.001 * (len(module) % 7))
        return leaves, codes.float() * scale

    return encode


FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]},
        block_encoder(32, 32, torch.float32),
    ),
    "blocks that do not divide": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [40, 48]},
        block_encoder(40, 48, torch.bfloat16),
    ),
    "tensors": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, tensor_encoder(False)),
    "tensors, static": ({"quant_method": "fp8", "activation_scheme": "static"}, tensor_encoder(True)),
    "rows": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, row_encoder),
}


def rounded(name: str, module: str, x: "torch.Tensor") -> "torch.Tensor":
    """An input as each form's own kernels round it."""
    record = FORMS[name][0]
    width = x.shape[-1]
    if name.startswith("blocks"):
        size = record["weight_block_size"][1]
        runs = list(x.split(size, dim=-1))
    else:
        runs = [x]
    out = []
    for run in runs:
        if name == "tensors, static":
            scale = torch.tensor(0.01 + 0.001 * (len(module) % 7))
        else:
            scale = run.abs().amax(-1, keepdim=True) / LARGEST
        out.append(to_fp8(run, scale).float() * scale)
    result = torch.cat(out, dim=-1)
    assert result.shape[-1] == width
    return result


def expected_logits(name: str, pair: Pair, model: Any) -> list[np.ndarray]:
    """transformers on the dense numbers, every linear's input rounded by a hook of this file."""
    for module, value in pair.meaning.items():
        linear = model.get_submodule(module)
        linear.weight.data.copy_(torch.from_numpy(value))
        linear.register_forward_pre_hook(lambda _, inputs, module=module: (rounded(name, module, inputs[0]),))
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in (13, 3, 8)]
    with torch.no_grad():
        return [values.numpy() for values in reference_logits(model, prompts)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FORMS)
def test_models_in_fp8(name: str, backend: str, tmp_path: Path) -> None:
    """Blocks of weights and groups of inputs, rows, tensors (K2), and static scales (K3)."""
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    record, encode = FORMS[name]
    model = llama()
    pair = write_pair(model, tmp_path, {**record, "modules_to_not_convert": ["lm_head"]}, encode)
    with load_model(pair.quantised).checkpoint as checkpoint:
        for module, value in pair.meaning.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            assert np.array_equal(ours.dequantize(), value)
    expected = expected_logits(name, pair, model)
    found = logits(pair.quantised, backend)
    gaps = np.concatenate([np.abs(a - b).max(axis=1) for a, b in zip(found, expected, strict=True)])
    print(f"{name} {backend}: {gaps.max():.1e}, median {np.median(gaps):.1e}")
    assert np.median(gaps) <= 1e-4
    assert gaps.max() <= 0.6  # a code may fall the other way where two sums differ in a last bit


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fmt": "e5m2"}, UnsupportedError, "fmt 'e5m2' is not supported; supported: e4m3"),
        ({"scale_fmt": "e8m0"}, UnsupportedError, "powers of two"),
        ({"activation_scheme": "static"}, UnsupportedError, "static activations with weights in blocks"),
        ({"weight_block_size": [32]}, CheckpointError, r"weight_block_size must be \[rows, columns\]"),
        ({"weight_block_size": [16, 32]}, CheckpointError, r"weight_scale_inv is fp32 \[2, 2\]; its config leads to"),
        ({"weight_block_size": None, "activation_scheme": "static"}, CheckpointError, "input_scale is missing"),
    ],
)
def test_what_cannot_be_so_is_said(change: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    record, encode = FORMS["blocks"]
    written = write_pair(llama(), tmp_path, record | change, encode)

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises(error, match=message):
        read()
