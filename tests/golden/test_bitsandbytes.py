# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' forms as transformers saves them: written here by their definition, and by the library itself where it
is installed. Needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import check_pair, llama, write_pair  # noqa: E402

from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402

NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
HALF = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
TABLES = {"nf4": NF4, "fp4": torch.cat([HALF, -HALF])}
SMALL_FLOATS = torch.cat([-torch.logspace(0, -4, 128), torch.logspace(-4, 0, 128)])
"""Any 256 numbers may stand in a nested_quant_map."""


def encoder(kind: str, nested: bool, size: int = 32, nested_size: int = 16) -> Any:
    table = TABLES[kind]

    def encode(module: str, weight: "torch.Tensor") -> Any:
        blocks = weight.float().reshape(-1, size)
        scales = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": [*weight.shape]}
        leaves = {"weight.absmax": scales, "weight.quant_map": table}
        if nested:
            offset = float(scales.mean())
            rest = scales - offset
            short = torch.nn.functional.pad(rest, (0, -len(rest) % nested_size)).reshape(-1, nested_size)
            factors = short.abs().amax(1)
            wide = factors.repeat_interleave(nested_size)[: len(rest)]
            indices = (rest[:, None] / wide[:, None] - SMALL_FLOATS).abs().argmin(1).to(torch.uint8)
            scales = SMALL_FLOATS[indices.long()] * wide + torch.tensor(offset)
            state |= {"nested_blocksize": nested_size, "nested_dtype": "float32", "nested_offset": offset}
            leaves |= {"weight.absmax": indices, "weight.nested_absmax": factors}
            leaves |= {"weight.nested_quant_map": SMALL_FLOATS}
        codes = (blocks[:, :, None] / scales[:, None, None] - table).abs().argmin(2)
        meaning = (table[codes] * scales[:, None]).reshape(weight.shape)
        flat = codes.reshape(-1).to(torch.uint8)
        leaves["weight"] = ((flat[0::2] << 4) | flat[1::2]).reshape(-1, 1)
        text = json.dumps(state).encode()
        leaves[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
        return leaves, meaning

    return encode


def int8_encoder(module: str, weight: "torch.Tensor") -> Any:
    most = weight.abs().amax(1)
    codes = torch.round(weight * 127 / most[:, None]).to(torch.int8)
    leaves = {"weight": codes, "SCB": most, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return leaves, codes.float() * (most / 127)[:, None]


def record(kind: str, nested: bool) -> dict[str, Any]:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    return {"quant_method": "bitsandbytes", "load_in_8bit": False, "llm_int8_skip_modules": None, **four}


EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_models_in_four_bits(kind: str, nested: bool, backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(write_pair(llama(), tmp_path, record(kind, nested), encoder(kind, nested)), backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_models_in_int8(backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(write_pair(llama(), tmp_path, EIGHT, int8_encoder), backend)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_the_library_writes_means_the_same_here(kind: str, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")

    def encode(module: str, weight: "torch.Tensor") -> Any:
        if kind == "int8":
            codes, most, _ = functional.int8_vectorwise_quant(weight.half())
            return {"weight": codes, "SCB": most.float()}, functional.int8_vectorwise_dequant(codes, most.float())
        codes, state = functional.quantize_4bit(weight, blocksize=32, quant_type=kind, compress_statistics=True)
        meaning = functional.dequantize_4bit(codes, state)
        return {"weight": codes, **{f"weight.{leaf}": value for leaf, value in state.as_dict(True).items()}}, meaning

    written = write_pair(llama(), tmp_path, EIGHT if kind == "int8" else record(kind, True), encode)
    with load_model(written.quantised).checkpoint as checkpoint:
        for module, value in written.meaning.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            if kind == "int8":  # it multiplies by the row's maximum and by 1 / 127 one after the other
                assert np.allclose(ours.dequantize(), value, rtol=3e-7, atol=0)
            else:
                assert np.array_equal(ours.dequantize(), value)


def broken(change: str) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = encoder("nf4", True)(module, weight)
        state = "weight.quant_state.bitsandbytes__nf4"
        record = json.loads(bytes(leaves[state].tolist()))
        if change == "shape":
            record["shape"] = [10**9, 10**9]
        elif change == "blocks":
            record["blocksize"] = 64
        elif change == "table":
            leaves["weight.quant_map"] = TABLES["fp4"]
        elif change == "scales":
            leaves["weight.absmax"] = leaves["weight.absmax"][1:]
        elif change == "nested":
            leaves["weight.nested_absmax"] = leaves["weight.nested_absmax"][1:]
        elif change == "rows":
            record["shape"] = [weight.numel() // 48, 48]
        leaves[state] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
        if change == "json":
            leaves[state] = leaves[state][3:]
        return leaves, meaning

    return encode


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("shape", CheckpointError, "do not fit config.json|its quant_state says"),
        ("blocks", CheckpointError, "in blocks of 32; its quant_state says 64 x 64 in blocks of 64"),
        ("table", UnsupportedError, "quant_map is not nf4's table"),
        ("scales", CheckpointError, r"absmax has 127 scales for 4096 numbers"),
        ("nested", CheckpointError, "nested_absmax is fp32"),
        ("rows", UnsupportedError, "blocks of 32 numbers cross rows of 48|do not fit config.json"),
        ("json", CheckpointError, "quant_state"),
    ],
)
def test_what_cannot_be_so_is_said(change: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, record("nf4", True), broken(change))

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises((error, CheckpointError), match=message):
        read()
