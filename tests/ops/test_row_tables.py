# SPDX-License-Identifier: Apache-2.0
"""Rows with tables of their own: decoded they are what ``dequantize`` says bit for bit; int8 rows meet whole
numbers exactly; a row's bits depend on nothing else."""

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_cases import learned_weight
from tiled_weights import multiply, tiled

from linnet.backends.cpu import _native, tiles
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.presets import parse_scheme

NAMES = ("KMEANS2", "KMEANS3", "KMEANS4")
SHAPES = ((1, 8), (17, 100), (40, 171), (37, 576), (150, 2048), (16, 8192))


def random_weight(name: str, rows: int, columns: int, seed: int) -> PackedWeight:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[0] = 0  # a table of nothing
    return learned_weight(values, parse_scheme(name).linear)


def as_multiplied(stored: PackedWeight) -> np.ndarray:
    """fp64 [rows, columns]: the weight as integers times its row's unit."""
    whole, unit = stored.whole_numbers()
    product = whole * unit.astype(np.float64)
    assert (np.abs(product - stored.dequantize()) <= unit / 2 * 1.01).all()
    return product


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("name", NAMES)
def test_decoded_they_are_what_dequantize_says(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CHUNK_CODES", 1)  # several pieces
    stored = random_weight(name, 300, 331, 1)
    view, _alive = tiled(stored, isa)
    for kind in (_native.InputType.fp32, _native.InputType.bf16):
        found = multiply(isa, view, kind, 331, np.eye(331, dtype=np.float32)).T
        assert (found + 0.0 == stored.dequantize() + 0.0).all()


@pytest.mark.parametrize("size", [16, 32, 96, 128, 1 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_int8_rows(name: str, size: int) -> None:
    """Against fp64 on the integers; and any row alone = in any batch = however outputs are split."""
    for seed, (outputs, columns) in enumerate(SHAPES):
        random = np.random.default_rng(seed)
        stored = random_weight(name, outputs, columns, seed)
        rows = int(random.integers(2, 40))
        x = (random.standard_normal((rows, columns)) * np.exp(random.standard_normal((rows, columns)))).astype(
            np.float32
        )
        own = min(size, columns)
        padded = np.pad(x, ((0, 0), (0, -columns % own))).reshape(rows, -1, own)
        scales = np.abs(padded).max(2, keepdims=True) / np.float32(127.5)
        with np.errstate(invalid="ignore"):
            codes = np.nan_to_num(np.clip(np.rint(padded / scales), -128, 127))
        rounded = (codes * scales.astype(np.float64)).reshape(rows, -1)[:, :columns]
        wanted = rounded @ as_multiplied(stored).T
        for isa in _native.available_isas():
            view, _alive = tiled(stored, isa)
            assert _native.refuse_linear(isa, view, _native.InputType.int8, size) is None
            whole = multiply(isa, view, _native.InputType.int8, size, x)
            assert ((whole - wanted) ** 2).sum() <= 1e-11 * (wanted**2).sum()
            for _ in range(3):
                first = int(random.integers(0, rows))
                last = int(random.integers(first + 1, rows + 1))
                part = multiply(isa, view, _native.InputType.int8, size, x[first:last], int(random.integers(1, 5)))
                assert (part.view(np.uint32) == whole[first:last].view(np.uint32)).all(), f"rows {first} to {last}"


def test_what_does_not_fit_is_said() -> None:
    stored = random_weight("KMEANS4", 2, 100, 1)
    view = tiles.view(stored, None)
    isa = _native.available_isas()[0]
    assert "multiples of 16 columns" in _native.refuse_linear(isa, view, _native.InputType.int8, 12)
    wide = tiles.view(random_weight("KMEANS2", 1, 10000, 1), None)
    assert "at most 8192 columns" in _native.refuse_linear(isa, wide, _native.InputType.int8, 10000)
    assert _native.refuse_linear(isa, wide, _native.InputType.int8, 128) is None
