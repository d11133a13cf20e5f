# SPDX-License-Identifier: Apache-2.0
"""Quantising while loading gives what compress writes by rounding to nearest, number by number."""

from pathlib import Path

import numpy as np
import pytest

from linnet import demo
from linnet.compress import compress, make_recipe
from linnet.errors import ConfigError
from linnet.models import load_model
from linnet.models.at_load import quantised_at_load
from linnet.program.serialise import digest
from linnet.schemes import PackedWeight


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g32-asym", "W8A8", "W4A16-head8"])
def test_the_same_numbers_as_compress_writes(tmp_path: Path, scheme: str) -> None:
    compress(demo.model_directory(), tmp_path / "out", make_recipe(scheme, "rtn"))
    written = load_model(tmp_path / "out")
    loaded = quantised_at_load(load_model(demo.model_directory()), scheme)
    assert digest(loaded.program) == digest(written.program)
    for weight in written.program.weights:
        expected, found = written.weight(weight.ref), loaded.weight(weight.ref)
        if isinstance(expected, PackedWeight):
            assert isinstance(found, PackedWeight)
            assert all((found.arrays[name] == array).all() for name, array in expected.arrays.items())
        else:
            assert np.array_equal(expected, found)
        assert loaded.stored_bytes(weight.ref) == written.stored_bytes(weight.ref)


def test_another_scheme_is_another_content_for_whoever_keeps_it() -> None:
    dense = load_model(demo.model_directory())
    eight, four = quantised_at_load(dense, "W8A16"), quantised_at_load(dense, "W4A16")
    assert len({dense.stamp(), eight.stamp(), four.stamp()}) == 3
    assert quantised_at_load(dense, "w8a16").stamp() == eight.stamp()
    assert digest(eight.for_context(eight.spec.max_positions).program) == digest(eight.program)


def test_a_quantised_model_and_an_unknown_scheme_are_refused(tmp_path: Path) -> None:
    compress(demo.model_directory(), tmp_path / "out", make_recipe("W8A16", "rtn"))
    with pytest.raises(ConfigError, match="out is quantised already; quantize is for dense models"):
        quantised_at_load(load_model(tmp_path / "out"), "W4A16")
    with pytest.raises(ConfigError, match="'W5A16' is not a scheme"):
        quantised_at_load(load_model(demo.model_directory()), "W5A16")
