# SPDX-License-Identifier: Apache-2.0
"""HQQ's form: written here by its definition, and by the library itself where it is installed. Needs torch."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import LIMITS, check_pair, llama, logits, write_pair  # noqa: E402

from linnet.backends.select import choose_backend  # noqa: E402
from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.convert import parse_target, to_directory  # noqa: E402
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


def down_the_rows(bits: float = 4, size: int = 32, kind: Any = torch.float16, as_float: bool = False) -> Any:
    """As ``encoder``, with axis 0: [size, rest], a scale for every place in the rest."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, _ = encoder(bits, size, kind)(module, weight)
        runs = weight.float().reshape(size, -1)
        most = round(2**bits) - 1
        low, high = runs.amin(0, keepdim=True), runs.amax(0, keepdim=True)
        scale = ((high - low) / most).to(kind)
        zero = (-low / scale.float()).to(kind)
        codes = torch.round(runs / scale.float() + zero.float()).clamp(0, most)
        packed = pack(codes.numpy().astype(np.int64), bits)
        leaves |= {"W_q": packed.view(kind) if as_float else packed, "scale": scale, "zero": zero}
        leaves |= {"axis": torch.tensor(0, dtype=torch.int32)}
        return leaves, ((codes - zero.float()) * scale.float()).reshape(weight.shape)

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


def check_spread(pair: Any, backend: str) -> None:
    """Such weights are shown dense, bit for bit what they mean; the model computes what its dense twin does."""
    with load_model(pair.quantised).checkpoint as checkpoint:
        assert not checkpoint.schemes()
        for module, value in pair.meaning.items():
            assert checkpoint.shape_of(module) == value.shape
            assert np.array_equal(checkpoint.linear(module), value), module
        assert not any(".W_q" in name or ".scale" in name for name in checkpoint.names())
        assert len(checkpoint.digest()) == 64
    for ours, dense in zip(logits(pair.quantised, backend), logits(pair.dense, backend), strict=True):
        assert np.array_equal(ours, dense)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_groups_that_run_down_the_rows(form: str, backend: str, tmp_path: Path) -> None:
    """Some cross rows: 32 do not divide 96 rows of 64 columns as whole rows, places alone count."""
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    bits, size, *_ = FORMS[form]
    told = record(bits, size, axis=0) if backend == "cpu" else None
    check_spread(write_pair(llama(), tmp_path, told, down_the_rows(*FORMS[form])), backend)


def test_a_layer_that_says_another_axis_is_refused(tmp_path: Path) -> None:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = down_the_rows()(module, weight)
        return leaves | {"axis": torch.tensor(1, dtype=torch.int32)}, meaning

    with load_model(write_pair(llama(), tmp_path, None, encode).quantised).checkpoint as checkpoint:
        with pytest.raises(CheckpointError, match="axis is 1; the shape of its scales is that of axis 0"):
            checkpoint.linear("model.layers.0.self_attn.q_proj")


def test_both_axes_in_one_model(tmp_path: Path) -> None:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        return (down_the_rows() if module.endswith("down_proj") else encoder())(module, weight)

    pair = write_pair(llama(), tmp_path, None, encode)
    with load_model(pair.quantised).checkpoint as checkpoint:
        assert not any("down_proj" in module for module in checkpoint.schemes())
        assert len(checkpoint.schemes()) == 12
    for ours, dense in zip(logits(pair.quantised, "reference"), logits(pair.dense, "reference"), strict=True):
        assert np.allclose(ours, dense, atol=1e-3)


def test_converted_it_is_a_dense_model(tmp_path: Path) -> None:
    """And so may be written in any form."""
    pair = write_pair(llama(), tmp_path, record(axis=0), down_the_rows())
    with Checkpoint.open(pair.quantised) as source:
        to_directory(source, tmp_path / "out", parse_target("dense:F32"), {}, exact=True)
    with Checkpoint.open(tmp_path / "out") as made:
        assert "quantization_config" not in made.config
        for module, value in pair.meaning.items():
            assert np.array_equal(made.linear(module), value)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_what_the_library_writes_means_the_same_here(bits: int, axis: int, tmp_path: Path) -> None:
    library = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")

    def encode(module: str, weight: "torch.Tensor") -> Any:
        wanted = library.BaseQuantizeConfig(nbits=bits, group_size=32, axis=axis)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        layer = library.HQQLinear(linear, wanted, compute_dtype=torch.bfloat16, device="cpu")
        state = layer.state_dict()
        wide = {key: value.float() if key in ("scale", "zero") else value for key, value in layer.meta.items()}
        return dict(state), library.Quantizer.dequantize(layer.W_q, wide | {"compute_dtype": torch.float32})

    pair = write_pair(llama(), tmp_path, None, encode)
    (check_pair if axis else check_spread)(pair, "reference")


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
        ({"axis": torch.tensor(0, dtype=torch.int32)}, CheckpointError, "axis is 0; the shape of its scales .* axis 1"),
        ({"axis": torch.tensor(7, dtype=torch.int32)}, CheckpointError, "axis is 7; the shape of its scales"),
        ({"axis": None}, CheckpointError, "axis is missing"),
        ({"quant_zero": torch.tensor(1, dtype=torch.uint8)}, UnsupportedError, "quantised themselves"),
        ({"packing": characters("2bit_u8")}, CheckpointError, "packing is '2bit_u8'; the shape of W_q is that of 4bit"),
        ({"packing": None}, CheckpointError, "packing must be the bytes of one of 8bit_u8, 4bit_u8"),
        ({"shape": torch.tensor([10**9, 10**9])}, CheckpointError, "groups of 32 lead to 4096 numbers"),
        ({"shape": torch.tensor([-64, -64])}, CheckpointError, r"shape is \[-64, -64\]"),
        ({"shape": None}, CheckpointError, "shape is missing"),
        ({"scale": torch.ones(1, 128)}, CheckpointError, "for 32 rows of 128 codes; that is no packing"),
        ({"scale": torch.ones(1, 100)}, CheckpointError, "which 100 scales do not divide"),
        ({"scale": torch.ones(1, 64)}, CheckpointError, "for 64 rows of 64 codes; that is no packing"),
        ({"scale": torch.ones(2, 64)}, CheckpointError, r"HQQ's are \[groups, 1\], or \[1, groups\] with axis 0"),
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
