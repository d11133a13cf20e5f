# SPDX-License-Identifier: Apache-2.0
"""What compressed-tensors writes besides plain groups: activation order, 4-bit floats, a KV cache alone.

Written here by definition, with the library's own packing. Needs torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.nvfp4 import helpers as fp4  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # noqa: E402
from foreign_forms import check_pair, llama, logits, write_pair  # noqa: E402

from linnet.errors import CheckpointError  # noqa: E402
from linnet.models import load_model  # noqa: E402

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def record(kind: str, weights: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    groups = {} if weights is None else {"group_0": {"targets": ["Linear"], "weights": weights}}
    plain = {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed"}
    return {**plain, "config_groups": groups, "ignore": ["lm_head"], **more}


def nearest(values: "torch.Tensor") -> "torch.Tensor":
    """e2m1 numbers."""
    magnitude = E2M1[(values.abs()[..., None] - E2M1).abs().argmin(-1)]
    return torch.where(values < 0, -magnitude, magnitude)


def four_bit_floats(nv: bool) -> Any:
    size = 16 if nv else 32

    def encode(module: str, weight: "torch.Tensor") -> Any:
        blocks = weight.unflatten(1, (-1, size))
        most = blocks.abs().amax(2)
        if nv:
            whole = 448 * 6 / weight.abs().max().reshape(1)
            stored = (most / 6 * whole).to(torch.float8_e4m3fn)
            scales = stored.float() / whole
        else:
            stored = (torch.floor(torch.log2(most)) - 2 + 127).to(torch.uint8)
            scales = torch.exp2(stored.float() - 127)
        values = nearest((blocks / scales[:, :, None]).clamp(-6, 6))
        leaves = {"weight_packed": fp4.pack_fp4_to_uint8(values.flatten(1)), "weight_scale": stored}
        if nv:
            leaves["weight_global_scale"] = whole
        return leaves, (values * scales[:, :, None]).flatten(1)

    return encode


NV = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
}
MX = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("kind", "weights"), [("nvfp4-pack-quantized", NV), ("mxfp4-pack-quantized", MX)], ids=["nvfp4", "mxfp4"]
)
def test_four_bit_floats(kind: str, weights: dict[str, Any], backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(write_pair(llama(), tmp_path, record(kind, weights), four_bit_floats(kind[0] == "n")), backend)


def in_activation_order(bits: int, packed: bool) -> Any:
    """Groups of 32 columns, scattered; one scale per row and group."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        rows, columns = weight.shape
        index = torch.from_numpy(np.random.default_rng(columns).permutation(columns) // 32)
        scales = torch.empty(rows, columns // 32)
        for group in range(columns // 32):
            scales[:, group] = weight[:, index == group].abs().amax(1) / (2 ** (bits - 1) - 0.5)
        wide = scales[:, index]
        codes = torch.round(weight / wide).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
        leaves = {"weight_scale": scales, "weight_g_idx": index.to(torch.int32)}
        if packed:
            leaves |= {"weight_packed": pack_to_int32(codes, bits), "weight_shape": torch.tensor(weight.shape)}
        else:
            leaves["weight"] = codes
        return leaves, codes.float() * wide

    return encode


def with_zero_points(module: str, weight: "torch.Tensor") -> Any:
    """Packed codes of 4 bits in groups of 32, with packed zero points."""
    groups = weight.unflatten(1, (-1, 32))
    least = groups.amin(2).clamp(max=0)
    scales = (groups.amax(2).clamp(min=0) - least) / 15
    zeros = torch.round(-8 - least / scales)
    codes = (torch.round(groups / scales[..., None]) + zeros[..., None]).clamp(-8, 7)
    leaves = {
        "weight_packed": pack_to_int32(codes.flatten(1).to(torch.int8), 4),
        "weight_zero_point": pack_to_int32(zeros.to(torch.int8), 4, packed_dim=0).contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    return leaves, ((codes - zeros[..., None]) * scales[..., None]).flatten(1)


ASYMMETRIC = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_packed_zero_points(backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(write_pair(llama(), tmp_path, record("pack-quantized", ASYMMETRIC), with_zero_points), backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("bits", "packed"), [(4, True), (8, False)])
def test_activation_order(bits: int, packed: bool, backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    kind = "pack-quantized" if packed else "int-quantized"
    pair = write_pair(llama(), tmp_path, record(kind, weights), in_activation_order(bits, packed))
    check_pair(pair, backend)


def test_activation_order_without_its_index(tmp_path: Path) -> None:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = in_activation_order(4, True)(module, weight)
        del leaves["weight_g_idx"]
        return leaves, meaning

    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    pair = write_pair(llama(), tmp_path, record("pack-quantized", weights), encode)
    with pytest.raises(CheckpointError, match="weight_g_idx is missing"):
        load_model(pair.quantised)


@pytest.mark.parametrize("groups", [None, {"group_0": {"targets": ["re:.*self_attn.*"], "weights": None}}])
def test_a_kv_cache_alone(groups: Any, tmp_path: Path) -> None:
    """Dense weights, keys and values as prescribed (K9)."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves = {"weight": weight}
        if module.endswith(("k_proj", "v_proj")):
            leaves["output_scale"] = torch.tensor([0.1])
        return leaves, weight

    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    prescribed = record("dense", None, kv_cache_scheme=cache) | {"config_groups": groups}
    pair = write_pair(llama(), tmp_path, prescribed, encode)
    source = load_model(pair.quantised)
    assert {state.dtype.element for state in source.program.states} == {"fp8_e4m3"}  # type: ignore[union-attr]
    assert all(isinstance(weight.dtype, str) for weight in source.program.weights)
    found, plain = logits(pair.quantised, "reference"), logits(pair.dense, "reference")
    gaps = [float(np.abs(a - b).max()) for a, b in zip(found, plain, strict=True)]
    assert max(gaps) > 1e-3  # keys and values were rounded
