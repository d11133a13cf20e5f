# SPDX-License-Identifier: Apache-2.0
"""Other loaders' codes as GGUF blocks: carried over where a block holds them, rounded or refused where not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_gptq import pair

from linnet.errors import UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.convert import numbers_hash, parse_target, to_directory, to_gguf
from linnet.schemes import PackedWeight

Form = tuple[int, int, bool, bool, bool]


@pytest.mark.parametrize(
    ("form", "wanted", "kinds"),
    [
        ((4, 32, True, False, False), "Q4_0", {"Q4_0"}),
        ((4, 32, False, False, False), "Q5_0", {"Q5_0"}),
        ((4, -1, True, False, False), "Q4_0", {"Q4_0"}),
        ((4, -1, False, True, False), "Q8_0", {"Q8_0"}),
        ((8, 32, True, False, False), "Q8_0", {"Q8_0"}),
        ((3, 32, True, False, True), "Q4_0", {"Q4_0"}),
    ],
    ids=str,
)
def test_codes_of_gptq_become_blocks(form: Form, wanted: str, kinds: set[str], tmp_path: Path) -> None:
    written = pair(tmp_path, *form)
    target = tmp_path / "model.gguf"
    with Checkpoint.open(written.quantised) as source:
        made = to_gguf(source, target, wanted, {}, exact=True)
        assert made.sha256 == numbers_hash(source)
    assert made.verified
    with Checkpoint.open(target) as published:
        for module, meaning in written.meaning.items():
            weight = published.linear(module)
            assert isinstance(weight, PackedWeight)
            assert weight.layout.name in kinds
            assert np.array_equal(weight.dequantize(), meaning)


def test_activation_order_has_no_blocks(tmp_path: Path) -> None:
    written = pair(tmp_path, 4, 32, False, True, False)
    with Checkpoint.open(written.quantised) as source:
        with pytest.raises(UnsupportedError, match=r"do not lie side by side \(activation order\)"):
            to_gguf(source, tmp_path / "model.gguf", "Q8_0", {}, exact=True)
        made = to_gguf(source, tmp_path / "model.gguf", "Q8_0", {})
    assert 0 < made.relative_error < 0.006
    assert _distance(tmp_path / "model.gguf", written.meaning) < 0.006


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_to_compressed_tensors(act_order: bool, tmp_path: Path) -> None:
    written = pair(tmp_path, 4, 32, False, act_order, False)
    with Checkpoint.open(written.quantised) as source:
        made = to_directory(source, tmp_path / "out", parse_target("compressed-tensors"), {})
    assert made.verified
    assert _distance(tmp_path / "out", written.meaning) == 0


def _distance(path: Path, meaning: dict[str, Any]) -> float:
    """Relative root mean square error over all linears."""
    error = power = 0.0
    with Checkpoint.open(path) as published:
        for module, expected in meaning.items():
            weight = published.linear(module)
            assert isinstance(weight, PackedWeight)
            error += float(np.square(weight.dequantize() - expected).sum())
            power += float(np.square(expected).sum())
    return float(np.sqrt(error / power))
