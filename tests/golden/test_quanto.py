# SPDX-License-Identifier: Apache-2.0
"""optimum-quanto's form: written here by its definition, and by the library itself where it is there. Needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foreign_forms import Pair, check_pair, llama, write_pair  # noqa: E402

from linnet.cli.main import run  # noqa: E402
from linnet.errors import CheckpointError, LinnetError, UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.models import load_model  # noqa: E402

MAP = "quanto_qmap.json"


def pack(codes: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Rows of [groups, group size] beside each other, as quanto's PackedTensor defines it."""
    step = -(-len(codes) * bits // 8)
    planes = torch.zeros(8 // bits * step, codes.shape[1], dtype=torch.uint8)
    planes[: len(codes)] = codes
    return sum(planes[i * step : (i + 1) * step] << (bits * i) for i in range(8 // bits))  # type: ignore[return-value]


def group_of(columns: int) -> int:
    """quanto's own choice."""
    if columns <= 128:
        return columns
    return next((size for size in (128, 96, 64, 32) if columns % size == 0), columns)


def activation_scales(kind: Any) -> dict[str, Any]:
    """There in every file, ones where activations are not quantised."""
    return {leaf: torch.ones((), dtype=kind) for leaf in ("input_scale", "output_scale")}


def bits_encoder(bits: int, kind: Any, zero_points: bool = False) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        runs = weight.float().reshape(-1, group_of(weight.shape[1]))
        most = 2**bits - 1
        low, high = runs.amin(1, keepdim=True), runs.amax(1, keepdim=True)
        scale = ((high - low) / most).to(kind)
        wide = scale.float()
        if zero_points:
            shift = torch.round(-low / wide).clamp(0, most).to(torch.uint8)
            codes = (torch.round(runs / wide) + shift).clamp(0, most).to(torch.uint8)
            meaning = (codes.float() - shift.float()) * wide
        else:
            shift = (-low).to(kind)
            codes = torch.round((runs + shift.float()) / wide).clamp(0, most).to(torch.uint8)
            meaning = wide * codes - shift.float()
        leaves = {"weight._data._data": pack(codes, bits), "weight._scale": scale, "weight._shift": shift}
        return leaves | activation_scales(kind), meaning.reshape(weight.shape)

    return encode


def bytes_encoder(stored: Any, kind: Any) -> Any:
    def encode(module: str, weight: "torch.Tensor") -> Any:
        largest = 127.0 if stored == torch.int8 else torch.finfo(stored).max
        scale = (weight.float().abs().amax(1, keepdim=True) / largest).to(kind)
        codes = weight.float() / scale.float()
        codes = (torch.round(codes) if stored == torch.int8 else codes).clamp(-largest, largest).to(stored)
        leaves = {"weight._data": codes, "weight._scale": scale} | activation_scales(kind)
        return leaves, codes.float() * scale.float()

    return encode


def record(weights: str) -> dict[str, Any]:
    """What transformers calls the same."""
    return {"quant_method": "quanto", "weights": weights, "activations": None, "modules_to_not_convert": None}


def write(folder: Path, encode: Any, weights: str | None, activations: str = "none", **sizes: Any) -> Pair:
    """With quanto's record beside the config, or with none."""
    pair = write_pair(llama(**sizes), folder, None, encode)
    if weights is not None:
        rule = {"weights": weights, "activations": activations}
        (pair.quantised / MAP).write_text(json.dumps(dict.fromkeys(pair.meaning, rule)))
    return pair


WIDE = {"hidden_size": 256, "intermediate_size": 480}
"""Rows of two groups of 128, of five of 96."""
FORMS: dict[str, tuple[Any, str | None, dict[str, Any]]] = {
    "qint8": (bytes_encoder(torch.int8, torch.float16), "qint8", {}),
    "qfloat8": (bytes_encoder(torch.float8_e4m3fn, torch.bfloat16), "qfloat8_e4m3fn", {}),
    "qint4": (bits_encoder(4, torch.bfloat16), "qint4", WIDE),
    "qint4, whole rows": (bits_encoder(4, torch.float16), None, {}),
    "qint4, zero points": (bits_encoder(4, torch.float16, zero_points=True), "qint4", WIDE),
    "qint2": (bits_encoder(2, torch.float16), "qint2", WIDE),
    "qint2, zero points": (bits_encoder(2, torch.bfloat16, zero_points=True), None, WIDE),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_models_in_quantos_form(form: str, backend: str, tmp_path: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    encode, weights, sizes = FORMS[form]
    check_pair(write(tmp_path, encode, weights, **sizes), backend)


@pytest.mark.parametrize("kind", ["qint8", "qfloat8", "qint4", "qint2"])
def test_what_the_library_writes_means_the_same_here(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    quantised, dense = tmp_path / "quantised", tmp_path / "dense"
    model = library.QuantizedModelForCausalLM.quantize(llama(**WIDE).bfloat16(), weights=getattr(library, kind))
    model.save_pretrained(quantised)
    meaning: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if not isinstance(module, library.QModuleMixin):
            continue
        state: dict[str, Any] = {}
        module.weight.save_to_state_dict(state, "", False)
        wide = {key: value.float() if key in ("_scale", "_shift") else value for key, value in state.items()}
        weight = torch.empty(module.out_features, module.in_features)
        about = {"qtype": module.weight_qtype, "axis": 0, "size": weight.size(), "stride": weight.stride()}
        if module.weight_qtype.bits == 8:
            read = library.WeightQBytesTensor.load_from_state_dict(
                wide, "", activation_qtype=None, missing_keys=[], **about
            )
        else:
            read = library.WeightQBitsTensor.load_from_state_dict(
                wide, "", group_size=module.weight_group_size, missing_keys=[], **about
            )
        meaning[name] = read.dequantize().numpy()
    plain = {name: tensor for name, tensor in model._wrapped.state_dict().items() if ".weight." not in name}
    plain = {name: tensor for name, tensor in plain.items() if not name.endswith(("put_scale", "_shift"))}
    plain |= {f"{name}.weight": torch.from_numpy(value) for name, value in meaning.items()}
    wanted = llama(**WIDE)
    wanted.load_state_dict(plain)
    wanted.save_pretrained(dense)
    check_pair(Pair(quantised, dense, meaning), "reference")


def test_what_shape_a_weight_has_the_model_must_say(tmp_path: Path) -> None:
    written = write(tmp_path, *FORMS["qint4"][:2], **WIDE)
    with Checkpoint.open(written.quantised) as checkpoint:
        assert checkpoint.lacks_shapes
        with pytest.raises(UnsupportedError, match="512 groups of 128 numbers; how many make a row"):
            checkpoint.linear("model.layers.0.self_attn.q_proj")
        load_model(checkpoint)
        assert checkpoint.shape_of("model.layers.0.self_attn.q_proj") == (256, 256)


def test_convert_asks_the_model_for_them(tmp_path: Path) -> None:
    written = write(tmp_path, *FORMS["qint4"][:2], **WIDE)
    target = tmp_path / "plain"
    assert run(["convert", str(written.quantised), str(target), "--to", "dense:F32"]) == 0
    with Checkpoint.open(target) as checkpoint:
        for module, value in written.meaning.items():
            assert np.array_equal(checkpoint.tensor(f"{module}.weight"), value)


@pytest.mark.parametrize(
    ("weights", "activations", "message"),
    [
        ("qfloat8_e5m2", "none", "weights 'qfloat8_e5m2' are not supported; supported: qint8, qint4, qint2"),
        ("qint8", "qint8", r"quantised activations \('qint8'\) are not supported"),
    ],
)
def test_records_that_are_not_read(weights: str, activations: str, message: str, tmp_path: Path) -> None:
    written = write(tmp_path, FORMS["qint8"][0], weights, activations)
    with pytest.raises(UnsupportedError, match=message):
        load_model(written.quantised)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no scales": ({"weight._scale": None}, "weight._scale is missing"),
    "scales of one group less": ({"weight._scale": torch.ones(511, 1).half()}, "do not fit config.json"),
    "scales of half the groups": ({"weight._scale": torch.ones(100, 1).half()}, "groups / 2 or groups / 4"),
    "no shifts": ({"weight._shift": None}, "weight._shift is missing"),
    "other shifts": ({"weight._shift": torch.ones(512, 1)}, r"weight._shift is fp32 \[512, 1\]"),
    "no numbers": ({"weight._shift": torch.full((512, 1), torch.nan).half()}, "NaN or infinity"),
    "words": ({"weight._data._data": torch.ones(256, 128, dtype=torch.int32)}, "is int32"),
    "other groups": ({"weight._data._data": torch.ones(256, 96, dtype=torch.uint8)}, "do not fit config.json"),
    "no zero points": ({"weight._shift": torch.full((512, 1), 16, dtype=torch.uint8)}, "holds 16; a zero point lies"),
}


@pytest.mark.parametrize("change", BROKEN)
def test_what_cannot_be_so_is_said(change: str, tmp_path: Path) -> None:
    changes, message = BROKEN[change]

    def encode(module: str, weight: "torch.Tensor") -> Any:
        leaves, meaning = bits_encoder(4, torch.float16)(module, weight)
        if module == "model.layers.0.self_attn.q_proj":
            leaves = {leaf: tensor for leaf, tensor in (leaves | changes).items() if tensor is not None}
        return leaves, meaning

    written = write(tmp_path, encode, "qint4", **WIDE)

    def read() -> None:
        load_model(written.quantised).checkpoint.linear("model.layers.0.self_attn.q_proj")

    with pytest.raises(LinnetError, match=message) as caught:
        read()
    assert isinstance(caught.value, CheckpointError)
