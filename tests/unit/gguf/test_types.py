# SPDX-License-Identifier: Apache-2.0
"""The table of types says what the reference library says."""

import pytest

from linnet.gguf import NAMED_TYPES, TENSOR_TYPES


def test_every_type_is_as_wide_as_the_gguf_package_says() -> None:
    constants = pytest.importorskip("gguf.constants")
    for kind, (elements, nbytes) in constants.GGML_QUANT_SIZES.items():
        mine = TENSOR_TYPES.get(kind.value)
        if mine is None:
            assert kind.value > max(TENSOR_TYPES), f"{kind.name} is missing"  # newer than this table
            continue
        assert mine.name == kind.name
        # ggml's own struct of Q8_1 holds two fp16 (36 bytes); the package says 40. It never lies in a file.
        assert (mine.block_elements, mine.block_bytes) == (elements, nbytes) or kind.name == "Q8_1"


def test_a_row_is_whole_blocks() -> None:
    assert NAMED_TYPES["Q4_K"].row_bytes(512) == 288
    assert NAMED_TYPES["F16"].row_bytes(3) == 6
    assert NAMED_TYPES["Q6_K"].bits_per_element == 6.5625
    with pytest.raises(ValueError, match="48 columns are not whole blocks of 32"):
        NAMED_TYPES["Q8_0"].row_bytes(48)
