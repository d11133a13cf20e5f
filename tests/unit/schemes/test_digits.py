# SPDX-License-Identifier: Apache-2.0
"""Five ternary digits, or eight binary ones, in a byte: exact, the documented bytes, and nothing else is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.errors import CheckpointError
from linnet.schemes import LinearScheme, PackedWeight, Scheme, bits_per_weight, pack
from linnet.schemes.layouts import DIGITS, DIGITS_TENSOR, PACK_QUANTIZED

SCHEMES = {"ternary": (3, 5), "binary": (2, 8)}
"""Element -> values, digits in a byte."""


def random_codes(element: str, rows: int, columns: int, seed: int) -> np.ndarray:
    values = [-1, 0, 1] if element == "ternary" else [-1, 1]
    return np.random.default_rng(seed).choice(np.array(values, np.int8), (rows, columns))


@given(
    element=st.sampled_from(sorted(SCHEMES)),
    rows=st.integers(1, 6),
    columns=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_codes_come_back_and_bytes_are_as_documented(element: str, rows: int, columns: int, seed: int) -> None:
    values, count = SCHEMES[element]
    codes = random_codes(element, rows, columns, seed)
    scale = np.linspace(0.5, 2, rows, dtype=np.float32)[:, None]
    packed = pack(codes, scale, None, LinearScheme(Scheme(element, "channel", scale_dtype="fp32")))
    assert np.array_equal(packed.codes(), codes)
    assert np.array_equal(packed.dequantize(), codes * scale)
    stored = packed.arrays[DIGITS_TENSOR]
    assert stored.shape == (rows, -(-columns // count))
    for row in range(rows):
        digits = [int(code) + 1 if values == 3 else (int(code) + 1) // 2 for code in codes[row]]
        number = sum(digit * values ** (place % count) * 256 ** (place // count) for place, digit in enumerate(digits))
        assert stored[row].tobytes() == number.to_bytes(stored.shape[1], "little")


@pytest.mark.parametrize("group", [8, 32, 128])
@pytest.mark.parametrize("element", sorted(SCHEMES))
def test_rows_are_exact_and_one_range_is_a_view(element: str, group: int) -> None:
    codes = random_codes(element, 7, 256, 1)
    scale = np.random.default_rng(2).uniform(0.1, 1, (7, 256 // group)).astype(np.float32)
    packed = pack(codes, scale, None, LinearScheme(Scheme(element, "group", group)))
    taken = packed.take_rows([(5, 7), (0, 2)])
    taken.check("taken")
    assert np.array_equal(taken.dequantize(), packed.dequantize()[[5, 6, 0, 1]])
    one = packed.take_rows([(2, 4)])
    assert np.shares_memory(one.arrays[DIGITS_TENSOR], packed.arrays[DIGITS_TENSOR])


@pytest.mark.parametrize(("element", "bits"), [("ternary", 1.6), ("binary", 1.0)])
def test_bits_of_a_weight(element: str, bits: float) -> None:
    scheme = LinearScheme(Scheme(element, "tensor"))
    assert bits_per_weight(scheme, (1000, 4000)) == pytest.approx(bits, abs=1e-4)


def test_a_byte_that_is_no_five_digits_is_refused() -> None:
    scheme = LinearScheme(Scheme("ternary", "channel"))
    packed = pack(random_codes("ternary", 2, 20, 3), np.ones((2, 1), np.float32), None, scheme)
    arrays = dict(packed.arrays)
    arrays[DIGITS_TENSOR] = arrays[DIGITS_TENSOR].copy()
    arrays[DIGITS_TENSOR][1, 2] = 243
    with pytest.raises(CheckpointError, match=r"here\.weight_digits holds 243; 5 digits of 3 values make at most 242"):
        PackedWeight(scheme, (2, 20), DIGITS, arrays).check("here")
    del arrays[DIGITS_TENSOR]
    with pytest.raises(CheckpointError, match=r"here\.weight_digits is missing"):
        PackedWeight(scheme, (2, 20), DIGITS, arrays).check("here")


def test_two_bits_a_code_mean_the_same() -> None:
    """As ternary weights lay before, and still may."""
    scheme = LinearScheme(Scheme("ternary", "group", 32))
    codes, scale = random_codes("ternary", 9, 96, 4), np.full((9, 3), 0.25, np.float32)
    digits, words = pack(codes, scale, None, scheme), pack(codes, scale, None, scheme, PACK_QUANTIZED)
    assert np.array_equal(digits.dequantize(), words.dequantize())
    assert digits.nbytes < words.nbytes
