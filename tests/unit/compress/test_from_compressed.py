# SPDX-License-Identifier: Apache-2.0
"""A compressed model as the source, when asked for by name: dequantised as it is read, and said in the card."""

from pathlib import Path

import numpy as np
import pytest
from walking import FEW, StopAt, hashes

from linnet.compress import CancelToken, Interrupted, compress, make_recipe
from linnet.errors import UnsupportedError
from linnet.formats import Checkpoint
from linnet.schemes import PackedWeight, parse_scheme, quantize_weight

RECIPE = make_recipe("W4A16-g16", "rtn")


@pytest.fixture(scope="module")
def small(tiny_model: Path, tmp_path_factory) -> Path:
    """Weights, head and embedding in codes."""
    return compress(tiny_model, tmp_path_factory.mktemp("small") / "w8", make_recipe("W8A16-head8", "rtn")).path


def test_what_is_written_is_what_the_codes_meant(small, tmp_path):
    with pytest.raises(UnsupportedError, match=r"already compressed .* or, if there is none, .*--from-compressed"):
        compress(small, tmp_path / "out", RECIPE)
    result = compress(small, tmp_path / "out", RECIPE, from_compressed=True)
    before, after = Checkpoint.open(small), Checkpoint.open(result.path, verify=True)
    assert result.source_bytes == before.nbytes
    narrow = after.tensor("model.norm.weight").dtype
    for module in before.schemes():
        stored = before.linear(module)
        assert isinstance(stored, PackedWeight)
        meant = stored.dequantize().astype(narrow)
        written = after.linear(module)
        if isinstance(written, PackedWeight):
            expected = quantize_weight(meant.astype(np.float32), parse_scheme("W4A16-g16").linear)
            assert (written.dequantize() == expected.dequantize()).all()
        else:
            assert (written == meant).all()
    assert len(after.schemes()) == 14
    assert result.manifest["record"]["source_codes"].startswith("linnet: int8 (")
    assert "**Made from a compressed model** (linnet: int8" in (result.path / "README.md").read_text()


def test_calibrated_and_resumed_it_is_the_same(small, tmp_path, text):
    recipe = make_recipe("W4A16-g16", "gptq", **FEW)
    options = {"calibration_text": text, "from_compressed": True}
    whole = compress(small, tmp_path / "whole", recipe, **options)
    token = CancelToken()
    with pytest.raises(Interrupted):
        compress(small, tmp_path / "part", recipe, cancel=token, observer=StopAt(token, 30), **options)
    part = compress(small, tmp_path / "part", recipe, **options)
    assert part.resumed
    assert hashes(part.path) == hashes(whole.path)


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_gguf_file(tiny_model, tmp_path, kind):
    """Of blocks or of plain numbers; the flag does nothing to a dense source."""
    pytest.importorskip("gguf", reason="needs the reference writer of GGUF")
    from tiny_gguf import write_tiny_gguf

    file = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf", kind)
    result = compress(file, tmp_path / "out", RECIPE, from_compressed=True)
    assert ("source_codes" in result.manifest["record"]) == (kind == "Q8_0")
    original = Checkpoint.open(tiny_model).tensor("model.layers.0.mlp.up_proj.weight").astype(np.float32)
    written = Checkpoint.open(result.path).linear("model.layers.0.mlp.up_proj")
    assert isinstance(written, PackedWeight)
    error = np.square(written.dequantize() - original).sum() / np.square(original).sum()
    assert error < 0.02
