# SPDX-License-Identifier: Apache-2.0
"""Codecs and packing: round trips, exact accounting, what dequantize means."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.errors import CheckpointError, ConfigError
from linnet.schemes import (
    ELEMENTS,
    LinearScheme,
    PackedWeight,
    Scheme,
    bits_per_weight,
    compute_scales,
    dequantize,
    pack,
    quantize,
    quantize_weight,
    round_scale,
    stored_bytes,
)
from linnet.schemes.codecs import code_range, exact_scales, scale_shape
from linnet.schemes.layouts import INT_QUANTIZED
from linnet.schemes.packing import pack_rows, packed_columns, unpack_rows

NF4 = ELEMENTS["nf4"].values
assert NF4 is not None


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 130),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_packing_is_the_little_endian_bit_stream(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    packed = pack_rows(codes, bits)
    assert packed.dtype == np.int32
    assert packed.shape == (rows, packed_columns(columns, bits))
    for row in range(rows):
        stream = sum(int(code) << (bits * i) for i, code in enumerate(codes[row]))
        assert packed[row].tobytes() == stream.to_bytes(packed.shape[1] * 4, "little")
    assert np.array_equal(unpack_rows(packed, bits, columns, 0).view(np.uint8), codes)


@st.composite
def linear_schemes(draw: st.DrawFn) -> LinearScheme:
    element = draw(st.sampled_from(["binary", "ternary", "int2", "int3", "int4", "int8", "fp8_e4m3", "nf4"]))
    granularity = draw(st.sampled_from(["tensor", "channel", "group", "block"]))
    return LinearScheme(
        Scheme(
            element,
            granularity,
            group_size=draw(st.sampled_from([8, 16, 32])) if granularity == "group" else None,
            block=draw(st.sampled_from([(4, 8), (3, 5)])) if granularity == "block" else None,
            symmetric=not element.startswith("int") or draw(st.booleans()),
            scale_dtype=draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        ),
        draw(st.sampled_from([None, Scheme("int8", "token", dynamic=True)])),
    )


@given(scheme=linear_schemes(), rows=st.integers(1, 9), groups=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_pack_and_codes_are_inverse_and_every_byte_is_accounted_for(
    scheme: LinearScheme, rows: int, groups: int, seed: int
) -> None:
    columns = groups * (scheme.weight.group_size or 11)
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    scale, zero_point = compute_scales(weight, scheme.weight)
    codes = quantize(weight, scheme.weight, scale, zero_point)
    packed = pack(codes, scale, zero_point, scheme)
    assert np.array_equal(packed.codes().view(np.int8), codes.view(np.int8))
    assert np.array_equal(packed.scales(), scale.astype(np.float32))
    if zero_point is not None:
        assert np.array_equal(packed.zero_points(), zero_point)
    assert packed.nbytes == stored_bytes(scheme, (rows, columns))
    assert bits_per_weight(scheme, (rows, columns)) == packed.nbytes * 8 / (rows * columns)
    if scheme.weight.block is None:
        start = seed % rows
        some = packed.take_rows([(start, rows), (0, 1)])
        some.check("taken")
        expected = packed.dequantize()[[*range(start, rows), 0]]
        assert np.array_equal(some.dequantize(), expected)


@given(scheme=linear_schemes(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_quantising_what_was_dequantised_changes_nothing(scheme: LinearScheme, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((6, 64)).astype(np.float32)
    scale, zero_point = compute_scales(weight, scheme.weight)
    codes = quantize(weight, scheme.weight, scale, zero_point)
    again = quantize(pack(codes, scale, zero_point, scheme).dequantize(), scheme.weight, scale, zero_point)
    assert np.array_equal(codes.view(np.int8), again.view(np.int8))


@pytest.mark.parametrize("element", ["int2", "int3", "int4", "int8"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_step(element: str, symmetric: bool) -> None:
    scheme = Scheme(element, "group", 16, symmetric=symmetric, scale_dtype="fp32")
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    packed = quantize_weight(weight, LinearScheme(scheme))
    error = np.abs(packed.dequantize() - weight).reshape(8, 4, 16)
    # the symmetric range lacks half a step at its top; a zero point is rounded by up to half a step
    assert (error <= packed.scales()[:, :, None] * 1.001).all()
    inner = np.abs(packed.codes()) < code_range(scheme)[1]
    assert (error.reshape(8, 64)[inner] <= np.repeat(packed.scales(), 16, axis=1)[inner] * 0.501).all()


def test_nf4_takes_the_nearest_of_the_table() -> None:
    weight = np.linspace(-3, 3, 640, dtype=np.float32).reshape(2, 320)
    scheme = LinearScheme(Scheme("nf4", "group", 64, scale_dtype="fp32"))
    packed = quantize_weight(weight, scheme)
    scaled = weight / np.repeat(packed.scales(), 64, axis=1)
    nearest = np.abs(scaled[:, :, None] - NF4).min(axis=2)
    assert np.allclose(np.abs(NF4[packed.codes()] - scaled), nearest, atol=1e-6)
    assert NF4[7] == 0
    assert (NF4[0], NF4[15]) == (-1, 1)


@given(
    elements=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=6),
    weights=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=6, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_no_ternary_scale_loses_less(elements: list[float], weights: list[float]) -> None:
    weight = np.array([elements], dtype=np.float32)
    importance = np.array(weights[: weight.shape[1]], dtype=np.float32)
    scheme = Scheme("ternary", "channel", scale_dtype="fp32")

    def error(scale: float, codes: np.ndarray, heavy: np.ndarray) -> float:
        return float((heavy * (codes * scale - weight.astype(np.float64)) ** 2).sum())

    for used, heavy in ((None, np.ones_like(importance)), (importance, importance)):
        found = exact_scales(weight, scheme, used)
        ours = error(float(found[0, 0]), quantize(weight, scheme, found), heavy)
        for codes in itertools.product((-1, 0, 1), repeat=weight.shape[1]):
            codes_row = np.array([codes])
            mass = float((heavy * codes_row**2).sum())
            best = float((heavy * codes_row * weight).sum()) / mass if mass > 0 else 0.0
            if best >= 0:
                assert ours <= error(best, codes_row, heavy) + 1e-6


def test_a_ternary_weight_gets_its_own_scale_back() -> None:
    random = np.random.default_rng(3)
    codes = random.integers(-1, 2, (6, 64)).astype(np.int8)
    for granularity, group, block in (
        ("tensor", None, None), ("channel", None, None), ("group", 16, None), ("block", None, (4, 24)),
    ):  # fmt: skip
        scheme = Scheme("ternary", granularity, group, block)
        scale = round_scale(random.uniform(0.1, 2, scale_shape(scheme, codes.shape)).astype(np.float32), scheme)
        weight = dequantize(codes, scheme, scale)
        packed = quantize_weight(weight, LinearScheme(scheme))
        assert (packed.scales() == scale.astype(np.float32)).all()
        assert (packed.codes() == codes).all()
        same = pack(codes, scale, None, LinearScheme(replace(scheme, element="int2")))
        assert (packed.dequantize() == same.dequantize()).all()


@given(
    elements=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=6),
    weights=st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=6, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_no_binary_scale_loses_less(elements: list[float], weights: list[float]) -> None:
    weight = np.array([elements], dtype=np.float32)
    importance = np.array(weights[: weight.shape[1]], dtype=np.float32)
    scheme = Scheme("binary", "channel", scale_dtype="fp32")
    found = exact_scales(weight, scheme, importance)
    codes = quantize(weight, scheme, found)
    assert set(codes.reshape(-1)) <= {-1, 1}
    assert (codes * weight >= 0).all()
    errors = [
        float((importance * (codes * scale - weight) ** 2).sum()) for scale in found[0, 0] * np.array([1, 0.9, 1.1])
    ]
    assert errors[0] <= min(errors[1:]) + 1e-6


def test_binary_weights_have_no_zero_to_leave_out() -> None:
    with pytest.raises(ConfigError, match="zeros of binary weights cannot be left out"):
        Scheme("binary", "channel", sparsity="2:4")


def test_a_weight_with_nan_is_refused() -> None:
    for bad in (np.nan, np.inf):
        weight = np.ones((4, 32), dtype=np.float32)
        weight[2, 3] = bad
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            compute_scales(weight, Scheme("int4", "group", 16))
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            exact_scales(weight, Scheme("ternary", "group", 16), np.ones(32, np.float32))


def test_narrow_weights_are_widened_first() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(ml_dtypes.bfloat16)
    scheme = LinearScheme(Scheme("int4", "group", 16))
    ours, wide = quantize_weight(weight, scheme), quantize_weight(weight.astype(np.float32), scheme)
    assert all(np.array_equal(ours.arrays[name], wide.arrays[name]) for name in wide.arrays)


def test_chunks_do_not_show() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(np.float32)
    for scheme in (Scheme("int4", "group", 128), Scheme("int8", "tensor"), Scheme("int8", "block", block=(2, 64))):
        whole = quantize_weight(weight, LinearScheme(scheme))
        codes = np.clip(np.rint(weight / _spread(whole, scheme, weight.shape)), *map(np.float32, code_range(scheme)))
        assert np.array_equal(whole.codes(), codes)


def _spread(packed: PackedWeight, scheme: Scheme, shape: tuple[int, int]) -> np.ndarray:
    scales = packed.scales()
    if scheme.block:
        return np.repeat(np.repeat(scales, scheme.block[0], 0)[: shape[0]], scheme.block[1], 1)[:, : shape[1]]
    return np.repeat(scales, shape[1] // scales.shape[1], axis=1)


def broken(packed: PackedWeight, name: str, array: np.ndarray | None) -> PackedWeight:
    arrays = dict(packed.arrays)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    return PackedWeight(packed.scheme, packed.shape, packed.layout, arrays)


def test_check_names_what_is_wrong() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    packed = quantize_weight(weight, LinearScheme(Scheme("int4", "group", 16)))
    with pytest.raises(CheckpointError, match=r"layer\.weight_scale is missing"):
        broken(packed, "weight_scale", None).check("layer")
    scale = packed.arrays["weight_scale"].copy()
    scale[3, 1] = np.nan
    with pytest.raises(CheckpointError, match=r"layer\.weight_scale holds NaN"):
        broken(packed, "weight_scale", scale).check("layer")
    with pytest.raises(CheckpointError, match=r"layer\.weight_packed is int32"):
        broken(packed, "weight_packed", packed.arrays["weight_packed"][:, 1:]).check("layer")
    narrow = pack(packed.codes(), packed.scales(), None, packed.scheme, layout=INT_QUANTIZED)
    codes = narrow.arrays["weight"].copy()
    codes[0, 0] = 9
    with pytest.raises(CheckpointError, match=r"layer.weight holds 9, out of range \[-8, 7\]"):
        broken(narrow, "weight", codes).check("layer")


def test_wrong_scales_are_refused() -> None:
    weight = np.ones((4, 32), dtype=np.float32)
    with pytest.raises(ConfigError, match="does not fit"):
        quantize(weight, Scheme("int4", "group", 16), np.ones((4, 1), np.float32))
    with pytest.raises(ConfigError, match="zero point"):
        quantize(weight, Scheme("int4", "group", 16, symmetric=False), np.ones((4, 2), np.float32))
