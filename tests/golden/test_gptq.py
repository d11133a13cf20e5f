# SPDX-License-Identifier: Apache-2.0
"""GPTQ's form, written here as AutoGPTQ and GPTQModel define it, read by Linnet. Needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import Pair, check_pair, llama, logits, write_pair  # noqa: E402

from linnet.errors import CheckpointError, UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint, CheckpointWriter  # noqa: E402
from linnet.models import load_model  # noqa: E402


def pack_inputs(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes [inputs, outputs] -> int32 [inputs * bits / 32, outputs], AutoGPTQ's order."""
    words = np.zeros((codes.shape[0] * bits // 32, codes.shape[1]), np.uint64)
    if bits != 3:
        per_word = 32 // bits
        for i in range(codes.shape[0]):
            words[i // per_word] |= codes[i].astype(np.uint64) << np.uint64(bits * (i % per_word))
        return words.astype(np.uint32).view(np.int32)
    for block in range(codes.shape[0] // 32):  # 32 codes in 3 words; the 11th and the 22nd lie across a border
        c = codes[32 * block : 32 * block + 32].astype(np.uint64)
        first, second, third = (words[3 * block + part] for part in range(3))
        for i in range(10):
            first |= c[i] << np.uint64(3 * i)
            second |= c[11 + i] << np.uint64(3 * i + 1)
            third |= c[22 + i] << np.uint64(3 * i + 2)
        first |= (c[10] & np.uint64(3)) << np.uint64(30)
        second |= (c[10] >> np.uint64(2)) & np.uint64(1)
        second |= (c[21] & np.uint64(1)) << np.uint64(31)
        third |= (c[21] >> np.uint64(1)) & np.uint64(3)
    return words.astype(np.uint32).view(np.int32)


def encoder(bits: int, group: int, symmetric: bool, act_order: bool, version_2: bool, index: bool = True) -> Any:
    """Round to nearest, stored as GPTQ stores it."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        w = weight.numpy().T.astype(np.float32)  # [inputs, outputs]
        inputs, outputs = w.shape
        size = inputs if group == -1 else group
        groups = inputs // size
        g_idx = np.arange(inputs) // size
        if act_order:
            g_idx = np.random.default_rng(len(module)).permutation(g_idx)
        largest = 2**bits - 1
        scales = np.empty((groups, outputs), np.float16)
        zeros = np.empty((groups, outputs), np.int64)
        codes = np.empty((inputs, outputs), np.int64)
        for g in range(groups):
            part = w[g_idx == g]
            if symmetric:
                scale, zero = np.abs(part).max(0) * 2 / largest, np.full(outputs, 2 ** (bits - 1))
            else:
                low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
                scale = (high - low) / largest
                zero = np.clip(np.rint(-low / scale), 0, largest)
            scales[g], zeros[g] = scale, zero
            codes[g_idx == g] = np.clip(np.rint(part / scales[g].astype(np.float32)) + zero, 0, largest)
        meaning = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx]).astype(np.float32)
        stored = zeros if version_2 else (zeros - 1) & largest
        leaves = {
            "qweight": torch.from_numpy(pack_inputs(codes, bits)),
            "qzeros": torch.from_numpy(np.ascontiguousarray(pack_inputs(np.ascontiguousarray(stored.T), bits).T)),
            "scales": torch.from_numpy(scales),
        }
        if index:
            leaves["g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        return leaves, torch.from_numpy(np.ascontiguousarray(meaning.T))

    return encode


def record(bits: int, group: int, symmetric: bool, act_order: bool, version_2: bool) -> dict[str, Any]:
    kind = {"checkpoint_format": "gptq_v2" if version_2 else "gptq"}
    plain = {"bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
    return {"quant_method": "gptq", **plain, **kind}


def pair(folder: Path, *form: Any, head: bool = False, index: bool = True) -> Pair:
    return write_pair(llama(), folder, record(*form), encoder(*form, index=index), head)


FORMS = [
    (4, 32, True, False, False),
    (4, 32, False, False, False),
    (4, 32, False, True, False),
    (4, 16, True, True, True),
    (4, -1, True, False, False),
    (4, -1, False, True, False),
    (8, 32, True, False, False),
    (8, 16, False, True, True),
    (3, 32, False, False, True),
    (3, 32, True, True, False),
    (2, 16, False, False, False),
    (2, 32, True, False, True),
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_models_in_gptqs_form(form: tuple[Any, ...], backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    check_pair(pair(tmp_path, *form), backend)


def test_activation_order_under_the_fast_policy(tmp_path: Path) -> None:
    """int8 activations are rounded in the order in which they meet the codes: as good as without that order."""
    form = (4, 32, False, True, False)
    written = pair(tmp_path, *form)
    found, expected = logits(written.quantised, "reference", "fast"), logits(written.dense, "reference")
    for a, b in zip(found, expected, strict=True):
        assert np.square(a - b).mean() < 5e-3 * np.square(b).mean()


def test_activation_order_survives_being_written_as_compressed_tensors(tmp_path: Path) -> None:
    written = pair(tmp_path, 4, 32, False, True, False)
    with Checkpoint.open(written.quantised) as source, CheckpointWriter(tmp_path / "out") as writer:
        for name in source.names():
            module = source.module_of(name)
            if source.scheme_of(module) is None:
                writer.add(name, source.tensor(name))
            elif name.endswith(".qweight"):
                writer.add_packed(module, source.linear(module))  # type: ignore[arg-type]
        writer.publish({key: value for key, value in source.config.items() if key != "quantization_config"})
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def test_a_quantised_head_and_a_record_beside_the_config(tmp_path: Path) -> None:
    form = (4, 32, True, False, False)
    written = write_pair(llama(), tmp_path, None, encoder(*form, index=False), head=True)
    (written.quantised / "quantize_config.json").write_text(json.dumps(record(*form) | {"lm_head": True}))
    check_pair(written, "reference")


def test_rules_for_single_modules(tmp_path: Path) -> None:
    general, special = (4, 32, True, False, False), (8, 16, False, False, False)

    def encode(module: str, weight: "torch.Tensor") -> Any:
        return encoder(*(special if "down_proj" in module else general))(module, weight)

    rules = {r"-:.*\.never": {}, r".*\.down_proj": {"bits": 8, "group_size": 16, "sym": False}}
    check_pair(write_pair(llama(), tmp_path, record(*general) | {"dynamic": rules}, encode), "reference")


def test_version_2_by_its_method(tmp_path: Path) -> None:
    form = (4, 32, False, False, True)
    method = {"quant_method": "gptq_v2", "bits": 4, "group_size": 32, "sym": False}
    check_pair(write_pair(llama(), tmp_path, method, encoder(*form)), "reference")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": 5}, UnsupportedError, "bits 5 is not supported; supported: 2, 3, 4, 8"),
        ({"bits": "four"}, CheckpointError, "bits must be a whole number"),
        ({"group_size": 0}, CheckpointError, "group_size must be positive"),
        ({"sym": 1}, CheckpointError, "sym must be true or false"),
        ({"checkpoint_format": "marlin"}, UnsupportedError, "checkpoint_format 'marlin'.*gptq, gptq_v2"),
        ({"is_marlin_format": True}, UnsupportedError, "Marlin"),
        ({"dynamic": ["x"]}, CheckpointError, "dynamic must be an object"),
        ({"dynamic": {"(": {"bits": 8}}}, CheckpointError, "dynamic: the pattern"),
        ({"group_size": 48}, CheckpointError, "group size 48 does not divide its 64 columns"),
        ({"group_size": 16}, CheckpointError, r"scales is fp16 \[2, 64\]; its config leads to fp16 \[4, 64\]"),
        ({"bits": 8}, CheckpointError, "shape"),
        ({"desc_act": True, "group_size": 32}, CheckpointError, "not every group has 32 columns"),
        ({"checkpoint_format": "gptq_v2"}, CheckpointError, "zero point of 7; sym is true, so all must be 8"),
    ],
)
def test_what_cannot_be_so_is_said(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    form = (4, 32, True, False, False)

    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = encoder(*form)(module, weight)
        if "desc_act" in change:
            leaves["g_idx"] = leaves["g_idx"] * 0
        return leaves, meaning

    written = write_pair(llama(), tmp_path, record(*form) | change, encode)

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises(error, match=message):
        read()


@pytest.mark.parametrize("leaf", ["scales", "qzeros"])
def test_missing_parts_are_named(leaf: str, tmp_path: Path) -> None:
    form = (4, 32, True, False, False)

    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = encoder(*form)(module, weight)
        del leaves[leaf]
        return leaves, meaning

    written = write_pair(llama(), tmp_path, record(*form), encode)
    with Checkpoint.open(written.quantised) as checkpoint, pytest.raises(CheckpointError, match=f"{leaf} is missing"):
        checkpoint.linear("model.layers.0.self_attn.q_proj")
