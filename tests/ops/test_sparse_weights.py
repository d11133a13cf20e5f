# SPDX-License-Identifier: Apache-2.0
"""2:4 weights that are multiplied without their zeros: bits are those of the same weight with them, in every tier, for
any number of rows and however outputs are split."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_cases import leave_two_of_four

from linnet.backends.cpu import _native, tiles
from linnet.backends.cpu.weights import WeightTable
from linnet.program.program import Program, Weight, WeightRef
from linnet.schemes.packed_weight import PackedWeight, quantize_weight, without_zeros
from linnet.schemes.presets import parse_scheme
from linnet.schemes.sparsity import TWO_OF_FOUR

POOL = _native.ThreadPool(2)
ISAS = _native.available_isas()
CODES = {
    "W4A16": 128, "W4A16-g64": 64, "W4A16-g32": 32, "W4A16-g16": 16, "W4A16-g40": 40, "W4A16-g8": 8, "W3A16": 32,
    "W8A16-g128": 128, "W4A16-channel": None, "W8A16": None,
}  # fmt: skip
"""Scheme -> columns of a group."""
PLACES = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


class One:
    """A source of one weight."""

    def __init__(self, stored: "np.ndarray | PackedWeight", bias: np.ndarray) -> None:
        kind: Any = stored.scheme if isinstance(stored, PackedWeight) else "bf16"
        shape = (int(stored.shape[0]), int(stored.shape[1]))
        weights = (
            Weight("weight", WeightRef("weight"), shape, kind),
            Weight("bias", WeightRef("bias"), bias.shape, "fp32"),
        )
        self.program = Program((), (), weights, (), (), (), ())
        self._arrays: dict[str, Any] = {"weight": stored, "bias": bias}

    def weight(self, ref: WeightRef) -> Any:
        return self._arrays[ref.checkpoint_name]


def random_weight(scheme: str, rows: int, columns: int, random: np.random.Generator) -> PackedWeight:
    """A tenth of the groups of four have less than two numbers, some none."""
    values = random.standard_normal((rows, columns)).astype(np.float32)
    leave_two_of_four(values)
    values[random.random(values.shape) < 0.05] = 0
    if scheme == "bf16":
        return without_zeros(values.astype(ml_dtypes.bfloat16))
    linear = parse_scheme(scheme).linear
    return quantize_weight(values, replace(linear, weight=replace(linear.weight, sparsity=TWO_OF_FOUR.name)))


def native(isa: str, stored: "np.ndarray | PackedWeight", bias: np.ndarray) -> tuple[Any, WeightTable]:
    """A native weight, with tiles if it is nothing without, and what keeps it."""
    source = One(stored, bias)
    table = WeightTable(source.program, source, isa)
    view = table.linear("weight", "bias")
    if table.needs_tiles(view):
        memory = np.full(_native.tile_bytes(isa, view) + 64, 0xA5, np.uint8)
        start = -memory.ctypes.data % 64
        target = memory[start : start + _native.tile_bytes(isa, view)]
        table.fill_tiles(isa, POOL, view, target)
        view.use_tiles(isa, table.keep(target))
    return view, table


def multiply(isa: str, view: Any, kind: Any, group_size: int, x: np.ndarray, units: int = 1) -> np.ndarray:
    y = np.full((len(x), view.rows), np.nan, np.float32)
    _native.LinearRun(isa, POOL, view, kind, group_size, x, False).run(y, 0, len(x), units)
    return y


def keeps(isa: str, stored: PackedWeight) -> bool:
    return tiles.keeps_two_of_four(isa, stored.scheme.weight, stored.shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", [*CODES, "bf16"])
def test_bits_are_those_of_the_weight_with_its_zeros(scheme: str, isa: str) -> None:
    for seed in range(6):
        random = np.random.default_rng(seed)
        group = CODES.get(scheme)
        columns = 4 * int(random.integers(1, 400)) if group is None else group * int(random.integers(1, 1600 // group))
        outputs, rows = int(random.integers(1, 150)), int(random.integers(9, 40))
        stored = random_weight(scheme, outputs, columns, random)
        if not keeps(isa, stored):
            assert (scheme, isa) == ("bf16", "avx512_bf16"), "only pairs of bf16 keep their zeros"
            continue
        bias = random.standard_normal(outputs).astype(np.float32)
        x = (random.standard_normal((rows, columns)) * np.exp(random.standard_normal(columns))).astype(np.float32)
        sparse, _alive = native(isa, stored, bias)
        dense, _alive_too = native(isa, stored.with_zeros(), bias)
        kinds = [(_native.InputType.fp32, columns)]
        if scheme == "bf16":
            kinds.append((_native.InputType.bf16, columns))
        else:
            kinds += [
                (_native.InputType.int8, size) for size in {group or columns, columns if group is None else group}
            ]
        if scheme in ("W8A16", "W4A16-channel"):
            kinds += [(_native.InputType.int8, size) for size in (32, 128) if size < columns]
        for kind, size in kinds:
            if _native.refuse_linear(isa, sparse, kind, size) is not None:
                assert kind == _native.InputType.int8, scheme  # columns of the fp32 arithmetic
                continue
            wanted = multiply(isa, dense, kind, size, x)
            for first, last in ((0, rows), (0, 1), (1, 3), (2, 5), (1, 5), (0, 5), (3, 9), (0, 8), (0, 9)):
                found = multiply(isa, sparse, kind, size, x[first:last], int(random.integers(1, 5)))
                assert (found.view(np.uint32) == wanted[first:last].view(np.uint32)).all(), (kind, size, first, last)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["bf16", "W8A16", "W4A16-channel"])
def test_every_two_of_four_columns_and_every_code(scheme: str, isa: str) -> None:
    """Each weight has one of the six pairs of columns, and between them all codes there are, the least too."""
    columns, bits = 192, 8 if scheme == "W8A16" else 4
    codes = np.zeros((96, columns), np.int8)
    fours = codes.reshape(-1, 4)
    least = -(1 << (bits - 1))
    for index, four in enumerate(fours):
        first, second = PLACES[index % 6]
        four[first], four[second] = index % (1 << bits) + least, (index // 6) % (1 << bits) + least
    if scheme == "bf16":
        stored = without_zeros(codes.astype(ml_dtypes.bfloat16))
    else:
        linear = parse_scheme(scheme).linear
        packed = quantize_weight(
            codes.astype(np.float32), replace(linear, weight=replace(linear.weight, sparsity="2:4"))
        )
        arrays = packed.layout.pack(codes, np.ones((96, 1), np.float32), None, packed.scheme)  # type: ignore[attr-defined]
        stored = replace(packed, arrays=arrays)
    if not keeps(isa, stored):
        pytest.skip("this tier multiplies pairs of bf16 with their zeros")
    view, _alive = native(isa, stored, np.zeros(96, np.float32))
    unit = np.eye(columns, dtype=np.float32)
    assert (codes == multiply(isa, view, _native.InputType.fp32, columns, unit).T + 0.0).all()
    if scheme == "bf16":
        return
    for rows in (1, 4, 16):  # each alone among few, and expanded among many; the greatest codes of a row meet all
        x = np.full((rows, columns), -128, np.float32)
        x[:, ::7] = 127
        x[:, 5::7] = 3
        scale = np.abs(x).max() / np.float32(127.5)
        rounded = np.clip(np.rint(x / scale), -128, 127).astype(np.float64)
        found = multiply(isa, view, _native.InputType.int8, columns, x)
        assert (found == (rounded @ codes.T.astype(np.float64)).astype(np.float32) * scale).all()


@pytest.mark.parametrize("isa", ISAS)
def test_fewer_bytes_than_with_the_zeros(isa: str) -> None:
    """Bits a weight: numbers, places, and scales and sums of codes of groups."""
    for scheme, most in (
        ("bf16", 8 + 1), ("W8A16-g128", 4 + 0.75 + 16 / 128), ("W4A16", 2 + 0.75 + 32 / 128),
        ("W4A16-g32", 2 + 0.75 + 24 / 32), ("W3A16-g128", 2 + 0.75 + 32 / 128),
    ):  # fmt: skip
        stored = random_weight(scheme, 64, 1024, np.random.default_rng(1))
        if not keeps(isa, stored):
            continue
        nbytes = tiles.weight_bytes(isa, stored.scheme, stored.shape, 0)
        assert nbytes == 64 * 1024 * most / 8
        dense = stored.with_zeros()
        assert nbytes < dense.nbytes


def test_what_has_no_kernel_keeps_its_zeros() -> None:
    values = np.zeros((8, 64), np.float32)
    for dtype in (np.float32, np.float16):
        assert not keeps("portable", without_zeros(values.astype(dtype)))
    scheme = parse_scheme("FP8").linear
    assert not keeps(
        "portable", quantize_weight(values, replace(scheme, weight=replace(scheme.weight, sparsity="2:4")))
    )
