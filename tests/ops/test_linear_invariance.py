# SPDX-License-Identifier: Apache-2.0
"""A row's bits: alone = in a batch of any size = however outputs are split over threads = from tiles, on every tier.

LINNET_FUZZ_TRIALS sets the number of random shapes per tier (csrc/tests/linear_test.cpp fuzzes the same law natively).
"""

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_cases import DENSE_DTYPES, CaseSource, OpCase
from tiled_weights import tile_memory

from linnet.backends.cpu import _native
from linnet.backends.cpu.weights import WeightTable

TRIALS = int(os.environ.get("LINNET_FUZZ_TRIALS", "23"))
POOL = _native.ThreadPool(2)
SCHEMES = (
    "W4A16-g32", "W4A16-g64", "W4A16", "W4A16-g256", "W4A16-asym", "W4A16-g32-asym", "W4A16-channel", "W8A16",
    "W8A16-g32", "W8A8", "W4A8", "W2A16", "W3A16", "TERNARY", "TERNARY-g64", "NF4", "FP8", "NF4-g16", "NF4-channel",
    "bf16", "fp16", "fp32",
)  # fmt: skip
NARROW = ("NF4", "FP8")
"""Multiplied by bf16 rows or, exactly, by fp32 ones."""


def prepared(isa: str, case: OpCase, input_type: Any, group_size: int, tiles: bool = False) -> tuple[Any, Any]:
    """The case's linear with its input quantised or cast, and what keeps the weight alive. One that is nothing but
    tiles has them whether or not they are asked for."""
    source = CaseSource(case)
    table = WeightTable(source.program, source, isa)
    refs = {weight.name: weight.ref for weight in source.program.weights}
    x = np.ascontiguousarray(source.weight(refs["table.x"]))
    view, filled = table.linear("weight", "bias"), None
    if table.needs_tiles(view):
        filled = tile_memory(isa, view)
        table.fill_tiles(isa, POOL, view, filled)
        view.use_tiles(isa, filled)
    return _native.LinearRun(isa, POOL, view, input_type, group_size, x, tiles), (table, filled)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_rows_do_not_depend_on_batch_or_split(isa: str) -> None:
    for trial in range(TRIALS):
        random = np.random.default_rng(trial)
        scheme = SCHEMES[trial % len(SCHEMES)]
        group = int(scheme.split("-g")[1].split("-")[0]) if "-g" in scheme else 128
        group = 32 if scheme[:2] in ("W2", "W3") else group
        free = scheme in ("W4A16-channel", "W8A16", "W8A8", "TERNARY", "FP8", "NF4-channel", *DENSE_DTYPES)
        columns = int(random.integers(1, 1500)) if free else group * int(random.integers(1, 9 if group > 32 else 40))
        columns += 2048 * int(random.integers(0, 2)) if scheme in DENSE_DTYPES or scheme.startswith(NARROW) else 0
        rows, outputs = int(random.integers(2, 40)), int(random.integers(1, 150))
        case = OpCase("linear", rows, columns, outputs, scheme, inputs="heavy")
        kind = _native.InputType.int8
        if scheme in DENSE_DTYPES or scheme.startswith(NARROW):
            narrow = scheme in ("bf16", "fp16") or (scheme != "fp32" and random.random() < 0.7)
            kind = _native.InputType.bf16 if narrow else _native.InputType.fp32
        size = columns if scheme in ("W8A8", "W4A8") else group
        run, alive = prepared(isa, case, kind, size)
        whole = np.empty((rows, outputs), np.float32)
        run.run(whole, 0, rows, 1)
        tiled, alive_too = prepared(isa, case, kind, size, tiles=True)
        other = np.full((rows, outputs), np.nan, np.float32)
        tiled.run(other, 0, rows, int(random.integers(1, 6)))
        assert (other.view(np.uint32) == whole.view(np.uint32)).all(), f"seed {trial} {case.name}: tiles differ"
        for _ in range(8):
            count = int(random.integers(1, min(rows, 20) + 1))
            first = int(random.integers(0, rows - count + 1))
            part = np.full((count, outputs), np.nan, np.float32)
            run.run(part, first, count, int(random.integers(1, 6)))
            same = part.view(np.uint32) == whole[first : first + count].view(np.uint32)
            assert same.all(), f"seed {trial} {case.name}: rows {first}..{first + count} differ from the batch"
            tiled.run(part, first, count, int(random.integers(1, 6)))
            same = part.view(np.uint32) == whole[first : first + count].view(np.uint32)
            assert same.all(), f"seed {trial} {case.name}: rows {first}..{first + count} of tiles differ"
        del alive, alive_too
