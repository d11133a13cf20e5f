# SPDX-License-Identifier: Apache-2.0
"""BitNet's form against transformers' own linears (integrations/bitnet.py), fp32, on every backend. Needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import stepping  # noqa: E402
from foreign_forms import LIMITS, SEED  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_activations import ONE_CODE, TOLERANCE, prompts_of  # noqa: E402
from tiny_models import gated, reference_logits  # noqa: E402
from transformers.integrations import bitnet  # noqa: E402

from linnet.backends.reference import ops  # noqa: E402
from linnet.backends.select import choose_backend  # noqa: E402
from linnet.backends.settings import CpuSettings  # noqa: E402
from linnet.cli.main import run  # noqa: E402
from linnet.errors import CheckpointError, LinnetError, UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.forms.bitnet import INPUTS  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.program.check import check  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402


@pytest.fixture(autouse=True)
def _eager() -> Any:
    """Its functions are compiled when they are first called, which takes longer than all the rest."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def record(linear_class: str | None = "autobitlinear", mode: str = "offline") -> dict[str, Any]:
    """The oldest checkpoints name no class."""
    said = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    return said if linear_class is None else said | {"linear_class": linear_class, "quantization_mode": mode}


def encoder(divides: bool, kind: Any) -> Any:
    """As transformers packs ternary weights; ``meaning`` is what they stand for."""

    def encode(module: str, weight: "torch.Tensor") -> Any:
        mean = weight.abs().mean()
        codes = (weight / mean).round().clamp(-1, 1)
        scale = (1 / mean if divides else mean).reshape(1).to(kind)
        packed = bitnet.pack_weights(codes.clone())
        factor = 1 / scale.float() if divides else scale.float()
        return {"weight": packed, "weight_scale": scale}, codes * factor

    return encode


def online(module: str, weight: "torch.Tensor") -> Any:
    factor = 1 / weight.abs().mean().clamp(min=1e-5)
    return {"weight": weight}, (weight * factor).round().clamp(-1, 1) / factor


FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "autobitlinear": (record(), encoder(False, torch.bfloat16)),
    "bitlinear": (record("bitlinear"), encoder(True, torch.float32)),
    "bitlinear, old": (record(None), encoder(True, torch.bfloat16)),
    "online": (record(mode="online"), online),
}


def small_bitnet() -> Any:
    torch.manual_seed(SEED)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.BitNetConfig(**gated(**sizes, num_hidden_layers=2, initializer_range=0.3))
    return transformers.BitNetForCausalLM(config).eval()


def write(folder: Path, form: str) -> tuple[Path, Any, dict[str, np.ndarray]]:
    """A checkpoint, transformers' model of it, and what the weights of its linears stand for."""
    said, encode = FORMS[form]
    model, tensors, meaning = small_bitnet(), {}, {}
    config = transformers.BitNetQuantConfig(**{key: value for key, value in said.items() if key != "quant_method"})
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        leaves, value = encode(name, module.weight.detach().clone())
        tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in leaves.items()}
        meaning[name] = value.numpy()
    linears = tuple(f"{name}." for name in meaning)
    tensors |= {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith(linears)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | {"quantization_config": said}))
    replaced = bitnet.replace_with_bitnet_linear(model, ["lm_head"], config)
    for name in meaning:
        module = replaced.get_submodule(name)
        own = {leaf.rpartition(".")[2]: value for leaf, value in tensors.items() if leaf.startswith(f"{name}.")}
        if isinstance(module, bitnet.AutoBitLinear) and config.quantization_mode != "online":
            own["weight"] = bitnet.unpack_weights(own["weight"], torch.float32)
        if "weight_scale" in own:
            module.weight_scale = own["weight_scale"].float()
        weight = own["weight"]
        module.weight = torch.nn.Parameter(weight, False) if isinstance(module, torch.nn.Linear) else weight
        module.dtype = torch.float32
    return folder, replaced, meaning


def test_inputs_are_rounded_as_its_own() -> None:
    """One code apart where a last bit decides, and nowhere else."""
    x = torch.from_numpy(np.random.default_rng(SEED).standard_t(2, (64, 96)).astype(np.float32))
    x[0] = 0
    ours, theirs = ops.quantise(x, INPUTS), bitnet.ActQuant.apply(x)
    gaps = (ops.dequantise(ours) - theirs).abs()[1:] / ours.scales[1:]
    assert not ours.codes[0].any()
    assert (gaps > 1e-3).float().mean() < 1e-3
    assert gaps.max() < 1.001
    assert int(ours.codes.min()) >= -127
    half = ops.quantise(x, type(INPUTS)("int8", "token", dynamic=True))
    assert ((ops.dequantise(half) - theirs).abs()[1:] / ours.scales[1:] > 1e-3).float().mean() > 0.5


@pytest.mark.parametrize("form", FORMS)
def test_models_are_computed_as_transformers_computes_them(form: str, tmp_path: Path) -> None:
    path, model, meaning = write(tmp_path, form)
    prompts = prompts_of()
    expected = reference_logits(model, prompts)
    source = load_model(path)
    for module, value in meaning.items():
        weight = source.checkpoint.linear(module)
        assert isinstance(weight, PackedWeight)
        np.testing.assert_allclose(weight.dequantize(), value, rtol=0 if form != "online" else 1e-6)
    for name in ("reference", *_tiers()):
        settings = name if name == "reference" else CpuSettings(isa=name)
        executable = choose_backend(settings).prepare(source, "exact", LIMITS)
        check(executable.program)
        for chunks in (None, (5, 1, 1)):
            found = stepping.run(executable, prompts, chunks, SEED)
            gaps = np.concatenate([np.abs(a - b.numpy()).max(axis=1) for a, b in zip(found, expected, strict=True)])
            print(f"{form} {name}: {gaps.max():.1e}, median {np.median(gaps):.1e}")
            assert np.median(gaps) <= TOLERANCE
            assert gaps.max() <= ONE_CODE


def _tiers() -> list[str]:
    """Every set of instructions that this machine has."""
    try:
        from linnet.backends.cpu import _native
    except ImportError:
        return []
    return list(_native.available_isas())


def test_converted_weights_mean_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two bits hold three values; of inputs compressed-tensors knows half the range alone, which is said."""
    path, _, meaning = write(tmp_path / "model", "autobitlinear")
    target = tmp_path / "ours"
    assert run(["convert", str(path), str(target), "--to", "compressed-tensors"]) == 0
    with Checkpoint.open(target) as checkpoint:
        for module, value in meaning.items():
            weight = checkpoint.linear(module)
            assert isinstance(weight, PackedWeight)
            assert weight.scheme.input is not None
            assert not weight.scheme.input.narrow_range
            assert np.array_equal(weight.dequantize(), value)
    said = (
        "14 linears prescribe dynamic int8 per token in a narrow range activations, the result dynamic int8 per token"
    )
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_transformers_itself_reads_the_file(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads BitNet with accelerate")
    path, model, _ = write(tmp_path, "autobitlinear")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = torch.tensor(prompts_of()[:1])
    with torch.no_grad():
        assert torch.equal(loaded(prompt).logits, model(prompt).logits)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"linear_class": "other"}, UnsupportedError, "linear_class 'other' is not supported; supported: bitlinear"),
        ({"quantization_mode": "now"}, UnsupportedError, "quantization_mode 'now' is not supported"),
        ({"use_rms_norm": True}, UnsupportedError, "use_rms_norm true .* is not supported; false is"),
        ({"modules_to_not_convert": ["("]}, CheckpointError, r"modules_to_not_convert: the pattern '\(' is refused"),
    ],
)
def test_records_that_are_not_read(change: dict[str, Any], error: Any, message: str, tmp_path: Path) -> None:
    path, _, _ = write(tmp_path, "autobitlinear")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load_model(path)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no scale": ({"weight_scale": None}, "weight_scale is missing"),
    "two scales": ({"weight_scale": torch.ones(2)}, r"weight_scale is fp32 \[2\]"),
    "no number": ({"weight_scale": torch.full((1,), torch.nan)}, "weight_scale is 0, NaN or infinity"),
    "a fourth code": ({"weight": torch.full((16, 64), 3, dtype=torch.uint8)}, "holds the code 3"),
    "other rows": ({"weight": torch.zeros(15, 64, dtype=torch.uint8)}, "do not fit config.json"),
    "a row": ({"weight": torch.zeros(64, dtype=torch.uint8)}, "two dimensions are needed"),
}


@pytest.mark.parametrize("change", BROKEN)
def test_what_cannot_be_so_is_said(change: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    changes, message = BROKEN[change]
    path, _, _ = write(tmp_path, "autobitlinear")
    module = "model.layers.0.self_attn.q_proj"
    tensors = load_file(path / "model.safetensors") | {f"{module}.{leaf}": value for leaf, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, path / "model.safetensors")
    with pytest.raises(LinnetError, match=message) as caught:
        load_model(path).checkpoint.linear(module)
    assert isinstance(caught.value, CheckpointError)
