# SPDX-License-Identifier: Apache-2.0
"""Few values on disk: digits are written, in activation order too, and ternary codes of two bits are still read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.schemes import LinearScheme, PackedWeight, Scheme, pack
from linnet.schemes.layouts import DIGITS_TENSOR, PACK_QUANTIZED

CODES = np.random.default_rng(0).integers(-1, 2, (6, 64)).astype(np.int8)
SCALE = np.linspace(0.5, 1, 12, dtype=np.float32).reshape(6, 2)


def write(path: Path, arrays: dict[str, np.ndarray], **weights: Any) -> Path:
    record = {"num_bits": 2, "type": "ternary", "strategy": "group", "group_size": 32, "symmetric": True, **weights}
    quantization = {
        "quant_method": "linnet",
        "version": 1,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": record}},
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    named = {f"up.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(named, path / "model.safetensors")
    return path


def packed(layout: Any = None) -> PackedWeight:
    return pack(CODES, SCALE, None, LinearScheme(Scheme("ternary", "group", 32, scale_dtype="fp32")), layout)


def test_two_bits_a_code_are_still_read(tmp_path: Path) -> None:
    with Checkpoint.open(write(tmp_path / "m", dict(packed(PACK_QUANTIZED).arrays))) as checkpoint:
        back = checkpoint.linear("up")
        assert isinstance(back, PackedWeight)
        assert np.array_equal(back.dequantize(), packed().dequantize())


def test_digits_in_activation_order(tmp_path: Path) -> None:
    group = np.random.default_rng(1).permutation(64) % 2
    arrays = {**packed().arrays, "weight_g_idx": group.astype(np.int32)}
    with Checkpoint.open(write(tmp_path / "m", arrays, actorder="group")) as checkpoint:
        back = checkpoint.linear("up")
        assert isinstance(back, PackedWeight)
        assert back.scheme.sorted_columns
        assert np.array_equal(back.dequantize(), CODES * SCALE[:, group])


@pytest.mark.parametrize(
    ("digits", "said"),
    [
        (np.full((6, 13), 255, np.uint8), r"up\.weight_digits holds 255; 5 digits of 3 values make at most 242"),
        (np.zeros((7, 13), np.uint8), r"up\.weight_digits is uint8 \[7, 13\], its scheme needs uint8 \[6, 13\]"),
        (np.zeros((6, 13), np.int64), r"up\.weight_digits is int64 \[6, 13\], its scheme needs uint8 \[6, 13\]"),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_damaged_digits_are_refused_in_any_order(tmp_path: Path, ordered: bool, digits: np.ndarray, said: str) -> None:
    arrays = {**packed().arrays, DIGITS_TENSOR: digits}
    if ordered:
        arrays["weight_g_idx"] = (np.arange(64) % 2).astype(np.int32)
    place = write(tmp_path / "m", arrays, **({"actorder": "group"} if ordered else {}))
    with Checkpoint.open(place) as checkpoint, pytest.raises(CheckpointError, match=said):
        checkpoint.linear("up")


def test_binary_codes_are_digits_or_two_numbers(tmp_path: Path) -> None:
    """No words of one bit, and no 0 between -1 and 1."""
    words = {**packed().arrays, "weight_packed": np.zeros((6, 2), np.int32)}
    del words[DIGITS_TENSOR]
    zeros = {"weight_scale": words["weight_scale"], "weight": np.zeros((6, 64), np.int8)}
    for name, arrays, said in (
        ("m", words, r"up\.weight_packed holds packed integers, its scheme says binary"),
        ("n", zeros, r"up\.weight holds 0, its codes are -1 and 1"),
    ):
        place = write(tmp_path / name, arrays, num_bits=1, type="binary")
        with Checkpoint.open(place) as checkpoint, pytest.raises(CheckpointError, match=said):
            checkpoint.linear("up")


def test_digits_of_another_scheme_are_refused(tmp_path: Path) -> None:
    with Checkpoint.open(write(tmp_path / "m", dict(packed().arrays), type="int")) as checkpoint:
        with pytest.raises(CheckpointError, match=r"up\.weight_digits holds digits, its scheme says int2"):
            checkpoint.linear("up")
    arrays = {name: array for name, array in packed().arrays.items() if name != "weight_shape"}
    with Checkpoint.open(write(tmp_path / "n", arrays)) as checkpoint:
        with pytest.raises(CheckpointError, match=r"up\.weight_shape must be two positive integers"):
            checkpoint.linear("up")


def test_the_name_of_the_form_is_ours_alone(tmp_path: Path) -> None:
    place = write(tmp_path / "m", {DIGITS_TENSOR: np.zeros((6, 13), np.uint8)})
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"] |= {"quant_method": "compressed-tensors", "format": "digits"}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="format 'digits' is not supported"):
        Checkpoint.open(place).linear("up")
