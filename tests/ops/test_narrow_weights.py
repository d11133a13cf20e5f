# SPDX-License-Identifier: Apache-2.0
"""Every fp8 code, and every index of a codebook, meets bf16 rows as the number it stands for, on every tier."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu import _native
from linnet.schemes import ELEMENTS

POOL = _native.ThreadPool(1)
COLUMNS = 70
NF4 = ELEMENTS["nf4"].values
assert NF4 is not None


def products(isa: str, storage: Any, codes: np.ndarray, scales: np.ndarray, rows: int, **more: Any) -> np.ndarray:
    """Row r of x is 1 in column r and 0 elsewhere."""
    outputs = len(codes)
    linear = _native.linear_weight(
        storage=storage, bits=8 * codes.shape[1] // COLUMNS, rows=outputs, columns=COLUMNS, codes=codes.reshape(-1),
        code_row_bytes=codes.shape[1], group_size=COLUMNS, scales=scales.reshape(-1).view(np.uint8),
        scale_type=_native.ScaleType.fp32, scale_row_stride=1, scale_group_stride=1, zero_points=None, bias=None,
        **more,
    )  # fmt: skip
    x = np.eye(rows, COLUMNS, dtype=np.float32)
    run = _native.LinearRun(isa, POOL, linear, _native.InputType.bf16, COLUMNS, x, False)
    y = np.full((rows, outputs), -1, np.float32)
    run.run(y, 0, rows, 1)
    return y


@pytest.mark.parametrize("rows", [1, 3, 8, 33, 70])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_fp8_code(isa: str, rows: int) -> None:
    codes = np.zeros((256, COLUMNS), np.uint8)
    codes[:, :rows] = np.arange(256)[:, None]
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scales = np.linspace(0.3, 3, 256, dtype=np.float32)
    finite = np.isfinite(numbers)  # a row of x is 0 where others are 1, and 0 times NaN is NaN as well
    y = products(isa, _native.Storage.fp8_e4m3, codes, scales, rows)
    assert (y[:, finite] == (numbers * scales)[finite]).all()
    assert np.isnan(y[:, ~finite]).all()
    assert (~finite).sum() == 2


@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_index_of_a_codebook(isa: str, rows: int) -> None:
    indices = np.arange(COLUMNS) % 16
    codes = np.tile((indices[0::2] | indices[1::2] << 4).astype(np.uint8), (40, 1))
    scales = np.linspace(0.01, 7, 40, dtype=np.float32)
    y = products(isa, _native.Storage.codebook, codes, scales, rows, codebook=NF4)
    expected = (NF4[indices[:rows], None] * scales).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (y == expected).all()


@pytest.mark.parametrize("isa", _native.available_isas())
def test_what_rounds_to_the_smallest_normal_number_does_so_for_any_number_of_rows(isa: str) -> None:
    """The greatest denormal of fp32 is nearest to 2^-126 in bf16, and an instruction that flushes makes it zero."""
    scales = np.full(40, 1.17537e-38, np.float32)
    codes = np.full((40, COLUMNS // 2), 0xFF, np.uint8)
    found = []
    for rows in (1, 8, 33):
        y = products(isa, _native.Storage.codebook, codes, scales, rows, codebook=NF4)
        found.append(y[:1].view(np.uint32))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
