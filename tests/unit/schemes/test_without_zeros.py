# SPDX-License-Identifier: Apache-2.0
"""2:4 without its zeros: bytes as compressed-tensors 0.9.4 wrote them, every number back, the rest refused."""

import random
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.schemes import (
    LinearScheme,
    PackedWeight,
    Scheme,
    parse_scheme,
    plain_scheme,
    quantize_weight,
    stored_bytes,
    without_zeros,
)

PLAIN = (np.float32, ml_dtypes.bfloat16, np.float16)
CODED = ("W8A16", "W8A16-g8", "W8A8", "W4A16-g8", "W4A16-channel", "W3A16-g8", "FP8", "TERNARY-g8")
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
RECORDED = {
    "bf16": (
        ml_dtypes.bfloat16, 20, "c36a0959c30a6a5903",
        "fac2b0c2c242eac22cc2f841d242dac20cc29842e242d8c12041a842bac260c2f4c2aac230c17c42e4c220c208428e42d4c2a0402842"
        "e84274c2c0c1",
    ),
    "fp16": (
        np.float16, 24, "c36a5935ac9659c36a",
        "d0d780d5105650d760d1c04f9056d0d660d0c054105700d400494055d0d500d3a0d750d580c9e05320d7d0d400c2c056a0d600454051"
        "4057a0d300cea0d5a0d2404df05520d5a0d1",
    ),
    "fp32": (
        np.float32, 8, "c3ac6a",
        "0000fac20000b0c20000c2420000eac20000c0c00000f8410000d242000090c200000040000098420000cac2000080c2",
    ),
    "int8": (np.int8, 16, "c36a9635c36a", "83a8618bd51f6993022771e50a54a3c8375c1a3f8ed82247"),
}  # fmt: skip
"""Type, columns, ``bitmask`` and ``compressed`` of three rows of ``recorded_values``, from compressed-tensors 0.9.4's
Sparse24BitMaskTensor.from_dense."""


def recorded_values(rows: int, columns: int) -> np.ndarray:
    at = np.arange(rows * columns)
    kept = [column % 4 in PAIRS[(5 * (column // 4) + column // columns) % 6] for column in at]
    return np.where(kept, (at * 37) % 251 - 125.0, 0.0).reshape(rows, columns)


def two_of_four(rows: int, columns: int, rng: np.random.Generator, fewer: bool = True) -> np.ndarray:
    """Random numbers, at most two of four neighbours other than zero; ``fewer``: of some groups one or none."""
    groups = rng.standard_normal((rows * columns // 4, 4)).astype(np.float32)
    order = np.argsort(rng.random(groups.shape), axis=1)
    np.put_along_axis(groups, order[:, :2], 0, axis=1)
    if fewer:
        groups[rng.random(len(groups)) < 0.2] = 0
        groups[rng.random(groups.shape) < 0.1] = 0
    return groups.reshape(rows, columns)


def sparse(linear: LinearScheme) -> LinearScheme:
    return replace(linear, weight=replace(linear.weight, sparsity="2:4"))


@pytest.mark.parametrize("name", RECORDED)
def test_bytes_are_those_of_compressed_tensors(name: str) -> None:
    dtype, columns, mask, kept = RECORDED[name]
    values = recorded_values(3, columns).astype(dtype)
    if name == "int8":
        scale = np.ones((3, 1), ml_dtypes.bfloat16)
        packed = quantize_weight(values.astype(np.float32), sparse(parse_scheme("W8A8").linear))
        arrays = packed.layout.pack(values, scale, None, packed.scheme)  # type: ignore[attr-defined]
    else:
        packed = without_zeros(values)
        arrays = dict(packed.arrays)
        assert np.array_equal(packed.codes().view(np.uint8), values.view(np.uint8))
    assert arrays["bitmask"].tobytes().hex() == mask
    assert arrays["compressed"].tobytes().hex() == kept
    assert arrays["shape"].tolist() == [[3], [columns]]


@pytest.mark.parametrize("kind", [*PLAIN, *CODED], ids=str)
def test_every_number_comes_back(kind: Any) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(8):
        rows, columns = int(rng.integers(1, 9)), 8 * int(rng.integers(1, 9))
        columns -= 4 * int(not isinstance(kind, str) and rng.integers(2))
        values = two_of_four(rows, columns, rng)
        if isinstance(kind, str):
            linear = parse_scheme(kind).linear
            packed, expected = quantize_weight(values, sparse(linear)), quantize_weight(values, linear)
            whole = packed.with_zeros()
            assert isinstance(whole, PackedWeight)
            assert whole.layout == expected.layout
            assert all(np.array_equal(whole.arrays[name], array) for name, array in expected.arrays.items())
            numbers = expected.dequantize()
        else:
            packed = without_zeros(values.astype(kind))
            numbers = values.astype(kind).astype(np.float32)
            assert packed.scheme == plain_scheme(np.dtype(kind))
        packed.check("here")
        assert np.array_equal(packed.dequantize(), numbers)
        assert packed.nbytes == stored_bytes(packed.scheme, (rows, columns))
        order = [int(row) for row in rng.permutation(rows)]
        taken = packed.take_rows([(row, row + 1) for row in order])
        taken.check("rows")
        assert np.array_equal(taken.dequantize(), numbers[order])
    one = packed.take_rows([(0, 1)])
    assert np.shares_memory(one.arrays["bitmask"], packed.arrays["bitmask"])


def test_how_much_is_saved() -> None:
    """Bits per weight of large layers: half the codes and one bit."""
    shape = (4096, 4096)
    for linear, most in ((plain_scheme(np.dtype(ml_dtypes.bfloat16)), 9.001), (parse_scheme("W8A16").linear, 5.01)):
        assert 8 * stored_bytes(sparse(linear), shape) / (4096 * 4096) < most
    assert 8 * stored_bytes(sparse(parse_scheme("W4A16").linear), shape) / (4096 * 4096) < 3.126


def test_three_of_four_are_refused() -> None:
    values = two_of_four(2, 16, np.random.default_rng(0), fewer=False)
    values[1, 8:11] = 1
    with pytest.raises(UnsupportedError, match="more than two numbers other than zero in four"):
        without_zeros(values)
    with pytest.raises(ConfigError, match="does not divide its 6 columns"):
        without_zeros(np.zeros((1, 6), np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"element": "nf4", "granularity": "channel"}, "their code of zero is not 0"),
        ({"element": "int4", "granularity": "channel", "symmetric": False}, "their code of zero is not 0"),
        ({"element": "int8", "granularity": "channel", "sparsity": "4:8"}, "for the pattern 2:4 only, not '4:8'"),
    ],
)
def test_schemes_that_cannot_leave_out_zeros(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheme(**{"sparsity": "2:4", **fields})


@pytest.mark.parametrize("byte", [0b00000011, 0b00110111, 0b11111111, 0b00010011, 0])
def test_a_mask_of_other_than_two_in_four_is_named(byte: int) -> None:
    packed = without_zeros(two_of_four(3, 20, np.random.default_rng(1)))
    mask = packed.arrays["bitmask"].copy()
    mask[2, 1] = byte
    with pytest.raises(CheckpointError, match=r"layer.bitmask does not keep two of four .* row 2, columns 8 to 15"):
        replace(packed, arrays={**packed.arrays, "bitmask": mask}).check("layer")
    mask = packed.arrays["bitmask"].copy()
    mask[0, 2] |= 0x30  # columns 20 to 23, which are none
    with pytest.raises(CheckpointError, match="row 0, columns 16 to 23"):
        replace(packed, arrays={**packed.arrays, "bitmask": mask}).check("layer")
