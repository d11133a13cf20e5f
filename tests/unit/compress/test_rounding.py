# SPDX-License-Identifier: Apache-2.0
"""Rounding in torch is the codecs' arithmetic, bit for bit, for every element type and granularity."""

from dataclasses import replace

import pytest
import torch

from linnet.compress.rounding import rounded
from linnet.schemes.packed_weight import quantize_weight
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import Scheme


@pytest.mark.parametrize(
    "scheme", ["W4A16-g32", "W4A16-g16-asym", "W8A16", "W4A16-channel-asym", "NF4-g32", "FP8", "TERNARY-g32", "block"]
)
def test_a_whole_weight(scheme: str) -> None:
    weight = torch.randn(24, 160, generator=torch.Generator().manual_seed(1))
    linear = parse_scheme("FP8" if scheme == "block" else scheme).linear
    if scheme == "block":
        linear = replace(linear, weight=Scheme("fp8_e4m3", "block", block=(16, 32), scale_dtype="fp32"))
    expected = torch.from_numpy(quantize_weight(weight.numpy(), linear).dequantize())
    assert torch.equal(rounded(weight, linear.weight), expected)
