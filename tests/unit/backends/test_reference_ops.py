# SPDX-License-Identifier: Apache-2.0
"""Every op of the reference backend against a second, plainer computation."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from linnet.backends.reference import ops
from linnet.backends.reference.attention import StoredRows, attend
from linnet.backends.reference.weights import QuantisedWeight, load_weight
from linnet.errors import UnsupportedError
from linnet.program.attributes import Attention, Gate, Norm, Rope
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import Scheme

RANDOM = np.random.default_rng(0)


def tensor(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RANDOM.normal(size=shape).astype(np.float32))


def test_norms_over_runs():
    x, gain, bias = tensor(3, 8), tensor(4), tensor(4)
    runs = x.numpy().reshape(3, 2, 4).astype(float)
    rms = runs / np.sqrt((runs**2).mean(-1, keepdims=True) + 1e-5) * (gain.numpy() + 1)
    assert np.allclose(ops.norm(x, Norm("rms", 4, 1e-5, 1.0), gain, None), rms.reshape(3, 8), atol=1e-5)
    centred = runs - runs.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain.numpy() + bias.numpy()
    assert np.allclose(ops.norm(x, Norm("layer", 4, 1e-5), gain, bias), layer.reshape(3, 8), atol=1e-5)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_rotates_pairs_as_complex_numbers(style):
    x, positions = tensor(3, 2 * 6), torch.tensor([0, 5, 70], dtype=torch.int32)
    frequencies = (1.0, 0.1)
    result = ops.rope(x, positions, Rope(6, 4, style, frequencies, 1.5)).numpy().reshape(3, 2, 6)
    pairs = [(0, 2), (1, 3)] if style == "half" else [(0, 1), (2, 3)]
    source = x.numpy().reshape(3, 2, 6)
    for i, (a, b) in enumerate(pairs):
        turned = (source[..., a] + 1j * source[..., b]) * np.exp(1j * positions.numpy() * frequencies[i])[:, None] * 1.5
        assert np.allclose(result[..., a], turned.real, atol=1e-5)
        assert np.allclose(result[..., b], turned.imag, atol=1e-5)
    assert (result[..., 4:] == source[..., 4:]).all()


def test_quantise_is_the_defined_rounding():
    scheme = Scheme("int8", "group", group_size=4, dynamic=True, scale_dtype="fp32")
    x = torch.tensor([[127.5, 0.5, 1.5, -127.5, 0.0, 0.0], [1.0, -2.0, 0.0, 0.0, 3.0, -3.0]])
    value = ops.quantise(x, scheme)
    assert value.codes[0].tolist() == [127, 0, 2, -128, 0, 0]  # ties to even; the greatest clamps
    assert value.scales[0].tolist() == [1.0, 0.0]
    assert torch.allclose(ops.dequantise(value), x, atol=float(value.scales.max()) * 0.5 + 1e-6)
    token = ops.quantise(x, Scheme("int8", "token", dynamic=True))
    assert token.scales.shape == (2, 1)
    with pytest.raises(UnsupportedError, match="static activations are quantised per tensor, not per token"):
        ops.quantise(x, Scheme("int8", "token", dynamic=False))
    with pytest.raises(UnsupportedError, match="not int2"):
        ops.quantise(x, Scheme("int2", "token", dynamic=True))


@pytest.mark.parametrize(("x_group", "weight_group"), [(8, 8), (20, 8), (8, 20), (20, 20), (4, 8)])
def test_integer_linear_is_the_product_of_the_dequantised(x_group, weight_group):
    columns, outputs = 20, 5
    scheme = Scheme("int8", "token", dynamic=True)
    if x_group < columns:
        scheme = Scheme("int8", "group", group_size=x_group, dynamic=True)
    x = ops.quantise(tensor(3, columns), scheme)
    codes = torch.from_numpy(RANDOM.integers(-8, 8, (outputs, columns)).astype(np.int16))
    scales = tensor(outputs, math.ceil(columns / weight_group)).abs()
    weight, bias = QuantisedWeight(codes, scales, weight_group), tensor(outputs)
    expected = ops.dequantise(x).double() @ weight.dense().double().T + bias
    assert torch.allclose(ops.linear(x, weight, bias).double(), expected, atol=1e-4)
    assert torch.equal(ops.embed(torch.tensor([3, 0]), weight), weight.dense()[[3, 0]])


def test_integer_linear_refuses_groups_that_do_not_nest():
    x = ops.quantise(tensor(1, 24), Scheme("int8", "group", group_size=8, dynamic=True))
    weight = QuantisedWeight(torch.zeros(2, 24, dtype=torch.int16), torch.ones(2, 2), 12)
    with pytest.raises(UnsupportedError, match="not a multiple"):
        ops.linear(x, weight, None)
    with pytest.raises(UnsupportedError, match="integer codes"):
        ops.linear(x, tensor(2, 24), None)


def test_gates():
    x, up = tensor(2, 5), tensor(2, 5)
    erf = np.vectorize(math.erf)
    assert np.allclose(ops.gate(x, up, Gate("silu")), x.numpy() / (1 + np.exp(-x.numpy())) * up.numpy(), atol=1e-6)
    assert np.allclose(ops.gate(x, None, Gate("gelu")), x.numpy() * 0.5 * (1 + erf(x.numpy() / 2**0.5)), atol=1e-6)
    assert np.allclose(ops.gate(x, None, Gate("relu")), np.maximum(x.numpy(), 0))
    cube = x.numpy() + 0.044715 * x.numpy() ** 3
    tanh = 0.5 * x.numpy() * (1 + np.tanh((2 / math.pi) ** 0.5 * cube))
    assert np.allclose(ops.gate(x, None, Gate("gelu_tanh")), tanh, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"softcap": 2.0}, {"alibi_slopes": (0.5, 0.25, 0.125, 0.0625)}], ids=str
)
def test_attention_against_loops(options):
    heads, kv_heads, size, rows, context = 4, 2, 6, 3, 7
    attributes = Attention(heads, kv_heads, size, 0.3, **options)
    query, key, value = (
        tensor(1, rows, heads * size),
        tensor(1, context, kv_heads * size),
        tensor(1, context, kv_heads * size),
    )
    stored = StoredRows(key), StoredRows(value)
    result = attend(query, *stored, context, attributes).reshape(rows, heads, size)
    q, k, v = (part.numpy()[0].astype(float) for part in (query, key, value))
    for row in range(rows):
        position = context - rows + row
        for head in range(heads):
            kv = slice(head // 2 * size, (head // 2 + 1) * size)
            seen = [j for j in range(position + 1) if options.get("window") is None or j > position - 3]
            scores = np.array([q[row, head * size : (head + 1) * size] @ k[j, kv] * 0.3 for j in seen])
            if "softcap" in options:
                scores = 2.0 * np.tanh(scores / 2.0)
            if "alibi_slopes" in options:
                scores = scores + options["alibi_slopes"][head] * np.array(seen)
            weights = np.exp(scores) / np.exp(scores).sum()
            assert np.allclose(result[row, head], weights @ v[seen, kv], atol=1e-5)


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q2_K", "Q4_K"])
def test_integer_activations_meet_weights_with_minimums(name: str) -> None:
    layout = GGUF_LAYOUTS[name]
    rng = np.random.default_rng(8)
    columns, outputs = 512, 5
    blocks = outputs * columns // layout.kind.columns
    fields: Any = rng.integers(0, 256, (blocks, layout.kind.nbytes), dtype=np.uint8).view(layout.kind.fields)[:, 0]
    fields["scale"], fields["minimum"] = 0.01, rng.uniform(-0.1, 0.1, blocks)
    stored = np.ascontiguousarray(fields).view(np.uint8).reshape(outputs, -1)
    packed = PackedWeight(layout.scheme, (outputs, columns), layout, {BLOCKS: stored})
    group = layout.kind.group
    x = ops.quantise(torch.from_numpy(rng.standard_normal((3, columns)).astype(np.float32)), activations(group))
    weight = load_weight(packed, keep_codes=True)
    assert isinstance(weight, QuantisedWeight)
    assert (weight.dense().numpy() == packed.dequantize()).all()
    found = ops.linear(x, weight, None).double().numpy()
    expected = ops.dequantise(x).double().numpy() @ packed.dequantize().astype(np.float64).T
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (weight.take_rows(torch.tensor([4, 1])).dense().numpy() == packed.dequantize()[[4, 1]]).all()


def activations(group: int) -> Scheme:
    return Scheme("int8", "group", group_size=group, dynamic=True, scale_dtype="fp32")
