# SPDX-License-Identifier: Apache-2.0
"""Our codecs and files against compressed-tensors' own and against transformers loading them. Needs torch."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

from compressed_tensors.compressors import ModelCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationArgs,
    QuantizationConfig,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize  # noqa: E402
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402

from linnet.formats import Checkpoint, CheckpointWriter  # noqa: E402
from linnet.formats.scheme_record import scheme_to_record  # noqa: E402
from linnet.schemes import (  # noqa: E402
    LinearScheme,
    PackedWeight,
    Scheme,
    SchemeMap,
    compute_scales,
    pack,
    parse_scheme,
    quantize,
    quantize_weight,
)

TORCH_SCALES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def hostile_weight(rows: int, columns: int, seed: int) -> np.ndarray:
    """Heavy tails, ties, a zero row, a one-sided row, a tiny row."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(2, (rows, columns)).astype(np.float32)
    weight[0] = 0
    weight[1] = np.abs(weight[1])
    weight[2] *= 1e-6
    weight[3] = np.round(weight[3] * 4) / 4
    return weight


def torch_extremes(weight, scheme: Scheme):
    if scheme.granularity == "tensor":
        return torch.aminmax(weight)
    if scheme.granularity == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if scheme.group_size:
        grouped = weight.unflatten(1, (-1, scheme.group_size))
        return grouped.amin(2), grouped.amax(2)
    height, width = scheme.block
    blocks = weight.unflatten(0, (-1, height)).unflatten(2, (-1, width))
    return blocks.amin((1, 3)), blocks.amax((1, 3))


SCHEMES = [
    Scheme(element, granularity, group, block, symmetric, scale_dtype=scale_dtype)
    for element in ("int2", "int3", "int4", "int8", "fp8_e4m3")
    for granularity, group, block in (
        ("tensor", None, None),
        ("channel", None, None),
        ("group", 32, None),
        ("block", None, (8, 16)),
    )
    for symmetric in (True, False)
    for scale_dtype in ("bf16", "fp16", "fp32")
    if symmetric or element != "fp8_e4m3"
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.element}-{s.granularity}-{s.symmetric}-{s.scale_dtype}")
def test_scales_zero_points_codes_and_words_are_bit_equal(scheme: Scheme) -> None:
    weight = hostile_weight(24, 96, seed=scheme.bits)
    theirs = torch.from_numpy(weight)
    args = QuantizationArgs(**scheme_to_record(scheme), scale_dtype=TORCH_SCALES[scheme.scale_dtype])
    their_scale, their_zero = calculate_qparams(*torch_extremes(theirs, scheme), args)
    scale, zero_point = compute_scales(weight, scheme)
    flat = scale.astype(np.float32).reshape(their_scale.shape)
    assert np.array_equal(flat, their_scale.float().numpy())
    if zero_point is not None:
        assert np.array_equal(zero_point.reshape(their_zero.shape), their_zero.numpy())
    dtype = torch.float8_e4m3fn if scheme.element == "fp8_e4m3" else torch.int8
    their_codes = their_quantize(theirs, their_scale, their_zero, args, dtype=dtype)
    codes = quantize(weight, scheme, scale, zero_point)
    assert np.array_equal(codes.view(np.int8), their_codes.view(torch.int8).numpy())
    packed = pack(codes, scale, zero_point, LinearScheme(scheme))
    back = their_dequantize(their_codes, their_scale.float(), None if scheme.symmetric else their_zero, args)
    assert np.array_equal(packed.dequantize(), back.float().numpy())
    if scheme.element != "fp8_e4m3":
        words = pack_to_int32(their_codes, scheme.bits)
        assert np.array_equal(packed.arrays["weight_packed"], words.numpy())
        stored_zero = packed.arrays.get("weight_zero_point")
        if stored_zero is not None and stored_zero.dtype == np.int32:
            assert np.array_equal(stored_zero, pack_to_int32(their_zero, scheme.bits, packed_dim=0).numpy())


@pytest.mark.parametrize("columns", [1, 5, 31, 33, 43, 64, 172])
@pytest.mark.parametrize("element", ["int2", "int3", "int4", "int8"])
def test_odd_widths_pack_as_theirs(element: str, columns: int) -> None:
    weight = np.random.default_rng(columns).standard_normal((5, columns)).astype(np.float32)
    scheme = LinearScheme(Scheme(element, "channel", symmetric=False))
    packed = quantize_weight(weight, scheme)
    assert np.array_equal(
        packed.arrays["weight_packed"],
        pack_to_int32(torch.from_numpy(packed.codes().copy()), scheme.weight.bits).numpy(),
    )


def llama(tied: bool = False, dtype="bfloat16"):
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, dtype=dtype, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def linears_of(model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]


def to_numpy(tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def write_ours(model, directory: Path, name: str, tied: bool, head: LinearScheme | None = None):
    """Quantise and write -> the packed weights by module. ``head``: quantise lm_head alone, embedding dense."""
    preset = parse_scheme(name)
    scheme_map = preset.scheme_map(None if tied else "lm_head", "model.embed_tokens")
    if head is not None:
        scheme_map = SchemeMap((("lm_head", head), *scheme_map.rules[1:]))
    modules = [*linears_of(model), *([] if tied else ["lm_head"]), "model.embed_tokens"]
    schemes = scheme_map.resolve(modules)
    packed = {}
    with CheckpointWriter(directory) as writer:
        for key, tensor in model.state_dict().items():
            module = key.removesuffix(".weight")
            if tied and module == "lm_head":
                continue
            scheme = schemes.get(module)
            if scheme is None:
                writer.add(key, to_numpy(tensor))
            else:
                packed[module] = quantize_weight(tensor.float().numpy(), scheme)
                writer.add_packed(module, packed[module])
        writer.publish(model.config.to_dict())
    return packed


PORTABLE = [
    "W4A16-g32", "W4A16-channel", "W3A16", "W2A16", "W8A16", "W8A16-g32", "W8A8", "W8A8-asym", "W4A8-g32", "FP8",
    "FP8_DYNAMIC",
]  # fmt: skip
PACKED_ZERO_POINTS = ["W4A16-g32-asym", "W4A16-channel-asym", "W3A16-asym", "W2A16-asym", "W8A16-g32-asym"]


@pytest.mark.parametrize("name", PORTABLE)
def test_transformers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    packed = write_ours(llama(), tmp_path / "out", name, tied=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        loaded(input_ids=torch.arange(8)[None])  # the first forward pass decompresses
    for module, weight in packed.items():
        theirs = loaded.get_submodule(module).weight.detach().float().numpy()
        assert np.array_equal(theirs, weight.dequantize()), module
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        for module, weight in packed.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            assert ours.scheme == weight.scheme
            assert ours.layout == weight.layout
            assert np.array_equal(ours.dequantize(), weight.dequantize())
        dense = [name for name in checkpoint.names() if name.endswith("norm.weight")]
        assert dense
        assert all(checkpoint.scheme_of(name.removesuffix(".weight")) is None for name in dense)


@pytest.mark.parametrize("name", PACKED_ZERO_POINTS)
def test_transformers_loads_packed_zero_points_when_it_dequantises(name: str, tmp_path: Path) -> None:
    """Without ``dequantize`` transformers 5.23 expects unpacked zero points, from compressed-tensors' own files too."""
    packed = write_ours(llama(), tmp_path / "out", name, tied=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    for module, weight in packed.items():  # that path multiplies in the scale's own type, bf16
        expected = weight.dequantize().astype(ml_dtypes.bfloat16).astype(np.float32)
        assert np.array_equal(loaded.get_submodule(module).weight.detach().numpy(), expected), module


def test_a_packed_head_is_portable_a_packed_embedding_is_not(tmp_path: Path) -> None:
    head = LinearScheme(Scheme("int8", "channel"))
    packed = write_ours(llama(), tmp_path / "out", "W4A16-g32", tied=False, head=head)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        loaded(input_ids=torch.arange(8)[None])
    assert np.array_equal(loaded.lm_head.weight.detach().numpy(), packed["lm_head"].dequantize())
    write_ours(llama(), tmp_path / "both", "W4A16-g32-head4", tied=False)
    with Checkpoint.open(tmp_path / "both") as checkpoint:
        assert checkpoint.config["quantization_config"]["quant_method"] == "linnet"
        assert isinstance(checkpoint.linear("lm_head"), PackedWeight)


@pytest.mark.parametrize("name", ["W4A16-g32", "W8A8"])
def test_a_tied_model_stays_portable_while_its_embedding_is_dense(name: str, tmp_path: Path) -> None:
    packed = write_ours(llama(tied=True), tmp_path / "out", name, tied=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        loaded(input_ids=torch.arange(8)[None])
    for module, weight in packed.items():
        assert np.array_equal(loaded.get_submodule(module).weight.detach().numpy(), weight.dequantize())
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_a_tied_model_with_a_packed_embedding_is_ours_alone(tmp_path: Path) -> None:
    packed = write_ours(llama(tied=True), tmp_path / "out", "W4A16-g32-head8", tied=True)
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert checkpoint.config["quantization_config"]["quant_method"] == "linnet"
        embedding = checkpoint.linear("model.embed_tokens")
        assert isinstance(embedding, PackedWeight)
        assert np.array_equal(embedding.dequantize(), packed["model.embed_tokens"].dequantize())


THEIRS = {
    "int4 groups": ({"num_bits": 4, "strategy": "group", "group_size": 32}, None),
    "int4 groups, zero points": ({"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, None),
    "int3 channels": ({"num_bits": 3, "strategy": "channel", "symmetric": False}, None),
    "int2 groups": ({"num_bits": 2, "strategy": "group", "group_size": 16}, None),
    "int8 weights only": ({"num_bits": 8, "strategy": "channel"}, None),
    "int8 tensor": ({"num_bits": 8, "strategy": "tensor"}, None),
    "W8A8": ({"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "token", "dynamic": True}),
    "W4A8 as int8": (
        {"num_bits": 4, "strategy": "group", "group_size": 32},
        {"num_bits": 8, "strategy": "token", "dynamic": True},
    ),
    "W8A8 static": ({"num_bits": 8, "strategy": "tensor"}, {"num_bits": 8, "strategy": "tensor"}),
    "FP8 blocks": (
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    ),
    "FP8 channels": (
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    ),
    "FP8 weights only (naive)": ({"num_bits": 8, "type": "float", "strategy": "channel"}, None),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_we_read_what_they_write(name: str, dtype: str, tmp_path: Path) -> None:
    weights, inputs = THEIRS[name]
    model = llama(dtype=dtype)
    config = QuantizationConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        ignore=["lm_head"],
    )
    apply_quantization_config(model, config)
    expected = {}
    for module in linears_of(model):
        linear = model.get_submodule(module)
        args = linear.quantization_scheme.weights
        record = {key: value for key, value in weights.items() if key in ("group_size",)}
        scheme = Scheme(
            "int4",
            args.strategy,
            record.get("group_size"),
            tuple(args.block_structure) if args.block_structure else None,
        )
        scale, zero_point = calculate_qparams(*torch_extremes(linear.weight.detach(), scheme), args)
        linear.weight_scale.data.copy_(scale)
        if not args.symmetric:
            linear.weight_zero_point.data.copy_(zero_point)
        if hasattr(linear, "input_scale"):
            linear.input_scale.data.fill_(0.5)
        used_zero = zero_point if not args.symmetric else None
        stored = torch.float8_e4m3fn if args.type == "float" else torch.int8
        codes = their_quantize(linear.weight.detach(), linear.weight_scale, used_zero, args, dtype=stored)
        back = their_dequantize(codes, linear.weight_scale.float(), used_zero, args)
        expected[module] = (codes.view(torch.int8).numpy(), to_numpy(linear.weight_scale), back.detach().numpy())
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert isinstance(checkpoint.linear("lm_head"), np.ndarray)
        for module, (codes, scale, back) in expected.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            assert np.array_equal(ours.codes().view(np.int8), codes)
            assert np.array_equal(ours.arrays["weight_scale"].reshape(scale.shape), scale)
            assert np.array_equal(ours.dequantize(), back)
            assert (ours.scheme.input is not None) == (inputs is not None)
            assert ("input_scale" in ours.arrays) == (inputs is not None and not inputs.get("dynamic", False))
            half = (
                ours.take_rows([(0, 16), (16, 32)]) if weights.get("strategy") == "block" else ours.take_rows([(3, 9)])
            )
            rows = slice(0, 32) if weights.get("strategy") == "block" else slice(3, 9)
            assert np.array_equal(half.dequantize(), back[rows])
