# SPDX-License-Identifier: Apache-2.0
"""HQQ's form: written here by its definition, and by the library itself where it is installed. Needs torch."""

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import LIMITS, check_pair, llama, write_pair  # noqa: E402

from linnet.backends.select import choose_backend  # noqa: E402
from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402

PACKINGS = {8: "8bit_u8", 5: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1.58: "2bit_u8", 1: "1bit_u8"}
NAMES = {torch.float16: "torch.float16", torch.bfloat16: "torch.bfloat16", torch.float32: "torch.float32"}


def characters(text: str) -> "torch.Tensor":
    return torch.tensor([ord(letter) for letter in text], dtype=torch.uint8)


def pack(codes: np.ndarray, bits: float) -> "torch.Tensor":
    """Rows of [groups, group size] beside each other, as hqq.core.bitpack defines it."""
    packing = PACKINGS[bits]
    if packing == "8bit_u8":
        return torch.from_numpy(codes.astype(np.uint8))
    width, per, kind = (3, 10, np.int32) if packing == "3bit_32" else (int(packing[0]), 8 // int(packing[0]), np.uint8)
    step = -(-len(codes) // per)
    planes = np.zeros((per * step, codes.shape[1]), np.int64)
    planes[: len(codes)] = codes
    words = sum(planes[i * step : (i + 1) * step] << (width * (per - 1 - i)) for i in range(per))
    return torch.from_numpy(np.asarray(words).astype(kind))


def encoder(bits: float = 4, size: int = 32, kind: Any = torch.float16, as_float: bool = False, **changes: Any) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        runs = weight.float().reshape(-1, size)
        most = round(2**bits) - 1
        low, high = runs.amin(1, keepdim=True), runs.amax(1, keepdim=True)
        scale = ((high - low) / most).to(kind)
        zero = (-low / scale.float()).to(kind)
        codes = torch.round(runs / scale.float() + zero.float()).clamp(0, most)
        meaning = ((codes - zero.float()) * scale.float()).reshape(weight.shape)
        packed = pack(codes.numpy().astype(np.int64), bits)
        leaves = {
            "W_q": packed.view(kind) if as_float else packed,
            "scale": scale,
            "zero": zero,
            "shape": torch.tensor(weight.shape),
            "nbits": torch.tensor(bits, dtype=torch.int32 if isinstance(bits, int) else torch.float32),
            "group_size": torch.tensor(size, dtype=torch.int32),
            "axis": torch.tensor(1, dtype=torch.int32),
            "packing": characters(PACKINGS[bits]),
            "unpack_view_dtype": characters("torch.int32" if bits == 3 else "torch.uint8"),
            "compute_dtype": characters(NAMES[kind]),
        }
        said = {"view_as_float": as_float, "channel_wise": 1, "encoded_state_dict": 1, "stores_quant_config": 1}
        unsaid = dict.fromkeys(("quant_scale", "quant_zero", "offload_meta", "optimize", "round_zero"), 0)
        leaves |= {leaf: torch.tensor(int(value), dtype=torch.uint8) for leaf, value in (said | unsaid).items()}
        for leaf, value in changes.items():
            if value is None:
                del leaves[leaf]
            else:
                leaves[leaf] = value
        return leaves, meaning

    return encode


def record(bits: float = 4, size: int = 32, axis: int = 1) -> dict[str, Any]:
    """What transformers writes; HQQ itself writes none."""
    weights = {"nbits": bits, "channel_wise": True, "group_size": size, "optimize": True, "round_zero": bits == 4}
    rule = {"weight_quant_params": weights | {"axis": axis, "view_as_float": False}}
    rule |= {"scale_quant_params": None, "zero_quant_params": None, "offload_meta": False}
    return {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": rule}


FORMS = {
    "8 bits": (8, 32, torch.bfloat16),
    "5 bits": (5, 32, torch.float16),
    "4 bits": (4, 32, torch.float16),
    "4 bits, as floats": (4, 16, torch.bfloat16, True),
    "3 bits": (3, 32, torch.bfloat16),
    "3 bits, as floats": (3, 32, torch.float16, True),
    "2 bits": (2, 16, torch.float16),
    "1.58 bits": (1.58, 32, torch.bfloat16),
    "1 bit": (1, 32, torch.float16),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_models_in_hqqs_form(form: str, backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    bits, size, *_ = FORMS[form]
    told = record(bits, size) if backend == "cpu" else None  # with a record or by the names of its tensors
    check_pair(write_pair(llama(), tmp_path, told, encoder(*FORMS[form])), backend)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_what_the_library_writes_means_the_same_here(bits: int, tmp_path: Path) -> None:
    library = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")

    def encode(module: str, weight: "torch.Tensor") -> Any:
        wanted = library.BaseQuantizeConfig(nbits=bits, group_size=32, axis=1)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        layer = library.HQQLinear(linear, wanted, compute_dtype=torch.bfloat16, device="cpu")
        state = layer.state_dict()
        wide = {key: value.float() if key in ("scale", "zero") else value for key, value in layer.meta.items()}
        return dict(state), library.Quantizer.dequantize(layer.W_q, wide | {"compute_dtype": torch.float32})

    check_pair(write_pair(llama(), tmp_path, None, encode), "reference")


def test_a_weight_is_rounded_once() -> None:
    """(code - zero) * scale of 16-bit numbers, against fp64: what the docstring of the form promises."""
    random = np.random.default_rng(7)
    codes = random.integers(0, 256, 100_000).astype(np.float64)
    for kind in (np.float16, np.float32):
        zero = random.uniform(0.02, 255, codes.size).astype(np.float16).astype(kind)
        scale = np.exp(random.standard_normal(codes.size) - 4).astype(np.float16).astype(np.float32)
        wide = zero.astype(np.float32)
        ours = codes.astype(np.float32) * scale - wide * scale
        assert np.array_equal(ours, ((codes - zero.astype(np.float64)) * scale).astype(np.float32))
        assert np.array_equal(ours, (codes.astype(np.float32) - wide) * scale)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"axis": torch.tensor(0, dtype=torch.int32)}, UnsupportedError, "axis: axis 0 .* is not supported"),
        ({"axis": torch.tensor(7, dtype=torch.int32)}, UnsupportedError, "axis is 7; supported: 1"),
        ({"axis": None}, CheckpointError, "axis is missing"),
        ({"quant_zero": torch.tensor(1, dtype=torch.uint8)}, UnsupportedError, "quantised themselves"),
        ({"packing": characters("2bit_u8")}, CheckpointError, "packing is '2bit_u8'; the shape of W_q is that of 4bit"),
        ({"packing": None}, CheckpointError, "packing must be the bytes of one of 8bit_u8, 4bit_u8"),
        ({"shape": torch.tensor([10**9, 10**9])}, CheckpointError, "groups of 32 lead to 4096 numbers"),
        ({"shape": torch.tensor([-64, -64])}, CheckpointError, r"shape is \[-64, -64\]"),
        ({"shape": None}, CheckpointError, "shape is missing"),
        ({"scale": torch.ones(1, 128)}, UnsupportedError, "groups that run down the rows"),
        ({"scale": torch.ones(128, 1, dtype=torch.int32)}, CheckpointError, "scale is int32; scales are fp32"),
        ({"scale": torch.full((128, 1), torch.inf).half()}, CheckpointError, "NaN or infinity"),
        ({"scale": None}, CheckpointError, "scale is missing"),
        ({"scale": None, "scale_q": torch.ones(128, 1)}, UnsupportedError, "scale_q: scales that are quantised"),
        ({"zero": torch.ones(64, 1).half()}, CheckpointError, "zero is fp16"),
        ({"W_q": torch.ones(60, 32, dtype=torch.uint8)}, CheckpointError, "no packing of 8, 4, 3, 2 or 1 bits"),
    ],
)
def test_what_cannot_be_so_is_said(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    changed = encoder(**changes)

    def encode(module: str, weight: "torch.Tensor") -> Any:
        return (changed if module == "model.layers.0.self_attn.q_proj" else encoder())(module, weight)

    written = write_pair(llama(), tmp_path, None, encode)

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises(error, match=message):
        read()


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        (record(axis=0), UnsupportedError, re.escape("axis 0 (groups that run down the rows) is not supported")),
        (
            {"quant_method": "hqq", "quant_config": {"self_attn.q_proj": record(axis=0)["quant_config"]}},
            UnsupportedError,
            "axis 0",
        ),
        ({"quant_method": "hqq", "quant_config": [1]}, CheckpointError, "quant_config must be an object"),
    ],
)
def test_records_that_are_not_read(told: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, told, encoder())
    with pytest.raises(error, match=message):
        load_model(written.quantised)


def test_groups_that_cross_rows_are_refused(tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, None, encoder(size=64))
    with pytest.raises(UnsupportedError, match="groups of 64 numbers cross rows of 96"):
        load_model(written.quantised)


def test_what_tiles_were_made_of_is_let_go(tmp_path: Path) -> None:
    pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    source = load_model(write_pair(llama(), tmp_path, None, encoder()).quantised)
    executable = choose_backend("cpu").prepare(source, "fast", LIMITS)
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) is PackedWeight and thing.scheme.weight.minimum]
    assert len(alive) <= 1  # what the checkpoint read last
    assert len(source.linears()) > len(alive)
    del executable


def test_its_own_words_are_kept_apart_from_the_canonical_ones(tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, None, encoder())
    with load_model(written.quantised).checkpoint as checkpoint:
        assert checkpoint.repacks
        weight = checkpoint.linear("model.layers.0.mlp.down_proj")
        assert isinstance(weight, PackedWeight)
        assert weight.scheme.weight.minimum
        assert weight.scheme.weight.element == "int4"
        assert checkpoint.schemes()["model.layers.0.mlp.down_proj"] == weight.scheme
