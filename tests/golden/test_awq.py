# SPDX-License-Identifier: Apache-2.0
"""AWQ's form, written here as AutoAWQ defines it for its GEMM and GEMV kernels, read by Linnet. Needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import check_pair, llama, write_pair  # noqa: E402

from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.models import load_model  # noqa: E402

GEMM, GEMV = (0, 2, 4, 6, 1, 3, 5, 7), (0, 1, 2, 3, 4, 5, 6, 7)


def pack_columns(codes: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Nibble i of word c is column 8 * c + order[i]; missing columns are zeros."""
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // 8) * 8), np.uint32)
    padded[:, : codes.shape[1]] = codes
    words = np.zeros((codes.shape[0], padded.shape[1] // 8), np.uint32)
    for i, column in enumerate(order):
        words |= padded[:, column::8] << np.uint32(4 * i)
    return words.view(np.int32)


def gemv_width(columns: int, group: int) -> int:
    """How many words of zero points AutoAWQ's GEMV keeps per row."""
    multiplier = {64: 2, 32: 4}.get(group, 1)
    words = -(-(columns // group) // 8)
    return -(-words // multiplier) * multiplier


def encoder(group: int, gemv: bool, zero_points: bool) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        w = weight.numpy().astype(np.float32)
        outputs, inputs = w.shape
        size = inputs if group == -1 else group
        runs = w.reshape(outputs, inputs // size, size)
        if zero_points:
            low, high = runs.min(2), runs.max(2)
            scales = ((high - low) / 15).astype(np.float16)
            zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, 15)
        else:
            scales, zeros = (np.abs(runs).max(2) / 7).astype(np.float16), np.full(runs.shape[:2], 8.0)
        wide = scales.astype(np.float32)[:, :, None]
        codes = np.clip(np.rint(runs / wide) + zeros[:, :, None], 0, 15)
        meaning = ((codes - zeros[:, :, None]).astype(np.float32) * wide).reshape(w.shape)
        codes = codes.reshape(w.shape).astype(np.uint32)
        if gemv:
            kept = gemv_width(inputs, size)
            padded = np.zeros((outputs, kept * 8), np.float16)
            padded[:, : scales.shape[1]] = scales
            wide_zeros = np.zeros((outputs, kept * 8), np.uint32)
            wide_zeros[:, : scales.shape[1]] = zeros
            leaves = {"qweight": pack_columns(codes, GEMV), "scales": padded, "qzeros": pack_columns(wide_zeros, GEMV)}
        else:
            leaves = {
                "qweight": pack_columns(np.ascontiguousarray(codes.T), GEMM),
                "scales": np.ascontiguousarray(scales.T),
                "qzeros": pack_columns(np.ascontiguousarray(zeros.T).astype(np.uint32), GEMM),
            }
        if not zero_points:
            del leaves["qzeros"]
        return {leaf: torch.from_numpy(array) for leaf, array in leaves.items()}, torch.from_numpy(meaning)

    return encode


def record(group: int, gemv: bool, zero_points: bool) -> dict[str, Any]:
    version = "GEMV" if gemv else "GEMM"
    plain = {"bits": 4, "group_size": group, "zero_point": zero_points, "version": version}
    return {"quant_method": "awq", "modules_to_not_convert": ["lm_head"], **plain}


FORMS = [
    *((32, False, True), (32, False, False), (-1, False, True)),
    *((32, True, True), (32, True, False), (16, True, True), (-1, True, True)),
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_models_in_awqs_form(form: tuple[int, bool, bool], backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(write_pair(llama(), tmp_path, record(*form), encoder(*form)), backend)


def test_early_files_with_their_record_beside_the_config(tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, None, encoder(32, False, True))
    early = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (written.quantised / "quant_config.json").write_text(json.dumps(early))
    check_pair(written, "reference")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": 3}, UnsupportedError, "bits 3 is not supported; supported: 4"),
        ({"version": "gemv_fast"}, UnsupportedError, "version 'gemv_fast'.*gemm, gemv"),
        ({"version": "marlin"}, UnsupportedError, "version 'marlin' is not supported; supported: gemm, gemv"),
        ({"version": "gemv"}, CheckpointError, "shape"),
        ({"group_size": 48}, CheckpointError, "group size 48 does not divide its 64 columns"),
        ({"group_size": 16}, CheckpointError, r"scales is fp16 \[2, 64\]; its config leads to fp16 \[4, 64\]"),
        ({"zero_point": "yes"}, CheckpointError, "zero_point must be true or false"),
    ],
)
def test_what_cannot_be_so_is_said(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    form = (32, False, True)
    written = write_pair(llama(), tmp_path, record(*form) | change, encoder(*form))

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises(error, match=message):
        read()
