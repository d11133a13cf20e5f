# SPDX-License-Identifier: Apache-2.0
"""Layout objects: what a PackedWeight says of itself does not depend on where its arrays came from."""

from typing import Any

import numpy as np
import pytest

from linnet.errors import CheckpointError
from linnet.schemes import ELEMENTS, LinearScheme, PackedWeight, Scheme, gguf_blocks
from linnet.schemes.layouts import PACK_MINIMUM
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS, GgufLayout

ROWS, COLUMNS = 6, 512


def random_weight(layout: GgufLayout, rng: np.random.Generator) -> PackedWeight:
    """Blocks of random bytes with finite scales and no code without a meaning."""
    kind = layout.kind
    count = ROWS * COLUMNS // kind.columns
    fields: Any = rng.integers(0, 256, (count, kind.nbytes), dtype=np.uint8).view(kind.fields)[:, 0]
    for name in {"scale", "minimum"} & set(kind.fields.names or ()):
        fields[name] = 120 if kind.scale_dtype == "e8m0" else rng.standard_normal(count)
    if kind.name == "TQ2_0":
        fields["codes"] &= 0x55
    blocks = np.ascontiguousarray(fields).view(np.uint8).reshape(ROWS, -1)
    return PackedWeight(layout.scheme, (ROWS, COLUMNS), layout, {BLOCKS: blocks})


@pytest.mark.parametrize("name", GGUF_LAYOUTS)
def test_blocks_mean_what_their_type_says(name: str) -> None:
    layout = GGUF_LAYOUTS[name]
    packed = random_weight(layout, np.random.default_rng(3))
    packed.check("here")
    expected = gguf_blocks.dequantize(layout.kind, gguf_blocks.as_blocks(layout.kind, packed.arrays[BLOCKS]))
    assert (packed.dequantize().view(np.int32) == expected.view(np.int32)).all()
    assert packed.scheme.weight.minimum == (packed.minimums() is not None)
    assert (packed.stored_scales() is not None) == (
        packed.scheme.weight.minimum or packed.scheme.weight.scale_bits is not None
    )
    assert packed.nbytes == sum(tensor.nbytes for tensor in layout.stored(packed.scheme, packed.shape).values())


@pytest.mark.parametrize("name", GGUF_LAYOUTS)
def test_rows_of_blocks_are_exact_and_one_range_is_a_view(name: str) -> None:
    packed = random_weight(GGUF_LAYOUTS[name], np.random.default_rng(4))
    taken = packed.take_rows(((4, 6), (0, 1)))
    assert (taken.dequantize() == packed.dequantize()[[4, 5, 0]]).all()
    assert np.shares_memory(packed.take_rows(((1, 3),)).arrays[BLOCKS], packed.arrays[BLOCKS])


def test_blocks_that_do_not_fit_are_named() -> None:
    layout = GGUF_LAYOUTS["Q4_K"]
    packed = random_weight(layout, np.random.default_rng(5))
    short = PackedWeight(packed.scheme, (ROWS, COLUMNS), layout, {BLOCKS: packed.arrays[BLOCKS][:, 1:]})
    with pytest.raises(
        CheckpointError, match=r"layer: uint8 \[6, 287\] are not the Q4_K blocks of a weight \[6, 512\]"
    ):
        short.check("layer")


def with_minimums(element: Any, kind: Any, dtype: Any) -> PackedWeight:
    rng = np.random.default_rng(6)
    scheme = LinearScheme(Scheme(element, "group", 32, symmetric=False, scale_dtype=kind, minimum=True))
    arrays = {
        "weight_packed": rng.integers(-(2**31), 2**31, (ROWS, COLUMNS * scheme.weight.bits // 32), dtype=np.int32),
        "weight_scale": rng.standard_normal((ROWS, COLUMNS // 32)).astype(dtype),
        "weight_minimum": rng.standard_normal((ROWS, COLUMNS // 32)).astype(dtype),
    }
    return PackedWeight(scheme, (ROWS, COLUMNS), PACK_MINIMUM, arrays)


@pytest.mark.parametrize(("element", "kind", "dtype"), [("int2", "fp16", np.float16), ("int8", "fp32", np.float32)])
def test_codes_from_zero_with_a_minimum(element: str, kind: str, dtype: Any) -> None:
    packed = with_minimums(element, kind, dtype)
    packed.check("here")
    bits = packed.scheme.weight.bits
    stream = np.unpackbits(packed.arrays["weight_packed"].view(np.uint8), axis=1, bitorder="little")
    codes = (stream.reshape(ROWS, COLUMNS, bits) << np.arange(bits)).sum(2)
    assert (packed.codes() == codes).all()
    assert packed.codes().max() == 2**bits - 1
    scale, minimum = (np.repeat(packed.arrays[f"weight_{part}"], 32, 1) for part in ("scale", "minimum"))
    expected = codes.astype(np.float32) * scale.astype(np.float32) - minimum.astype(np.float32)
    assert np.array_equal(packed.dequantize(), expected)
    assert np.array_equal(packed.take_rows(((4, 6), (0, 1))).dequantize(), expected[[4, 5, 0]])
    assert packed.nbytes == sum(tensor.nbytes for tensor in PACK_MINIMUM.stored(packed.scheme, packed.shape).values())
    assert np.shares_memory(packed.take_rows(((1, 3),)).arrays["weight_packed"], packed.arrays["weight_packed"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_minimum", np.full((ROWS, COLUMNS // 32), np.nan, np.float32), "weight_minimum holds NaN"),
        ("weight_minimum", np.ones((ROWS, 1), np.float32), r"float32 \[6, 1\], its scheme needs fp32 \[6, 16\]"),
        ("weight_packed", np.ones((ROWS, 3), np.int32), r"int32 \[6, 3\], its scheme needs int32 \[6, 64\]"),
    ],
)
def test_minimums_that_do_not_fit_are_named(name: str, value: Any, message: str) -> None:
    packed = with_minimums("int4", "fp32", np.float32)
    broken = PackedWeight(packed.scheme, packed.shape, PACK_MINIMUM, {**packed.arrays, name: value})
    with pytest.raises(CheckpointError, match=f"layer.{message}" if name in message else f"layer.{name} is {message}"):
        broken.check("layer")


@pytest.mark.parametrize("name", [name for name, element in ELEMENTS.items() if element.values is not None])
def test_a_codebooks_codes_find_their_own_values(name: str) -> None:
    element = ELEMENTS[name]
    assert element.values is not None
    found = element.ascending[np.searchsorted(element.midpoints, element.values, side="left")]
    assert (element.values[found] == element.values).all()
    assert (np.diff(element.values[element.ascending]) >= 0).all()
