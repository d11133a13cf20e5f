# SPDX-License-Identifier: Apache-2.0
"""Published forms written by Linnet: what another writer made by definition comes out again tensor by tensor, decoders
made from each definition and the libraries that are installed read the same numbers. Needs torch."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import stepping  # noqa: E402
import test_awq as awq  # noqa: E402
import test_bitsandbytes as bnb  # noqa: E402
import test_compressed_tensors_forms as fp4  # noqa: E402
import test_fp8 as fp8  # noqa: E402
import test_gptq as gptq  # noqa: E402
from foreign_forms import LIMITS, SEED, Pair, check_pair, llama, write_pair  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_models import TINY_MODELS, VOCABULARY, TinyModel, reference_logits, write  # noqa: E402

from linnet.backends.select import choose_backend  # noqa: E402
from linnet.errors import UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.convert import Conversion, parse_target, to_directory  # noqa: E402
from linnet.formats.forms.written import is_embedding, is_head  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402

Tensors = dict[str, "torch.Tensor"]


def convert(source: Path, target: Path, to: str, **options: Any) -> Conversion:
    with Checkpoint.open(source) as checkpoint:
        plain = not checkpoint.schemes()
        linears = [info.module for info in load_model(checkpoint).linears() if info.kind == "linear"] if plain else []
        return to_directory(checkpoint, target, parse_target(to), {}, linears=linears, **options)


def dense(folder: Path) -> Path:
    """A tiny model with trained-looking weights of 16 bits, nothing quantised."""
    llama().to(torch.bfloat16).save_pretrained(folder)
    return folder


def tensors_of(path: Path) -> Tensors:
    return load_file(path / "model.safetensors")


def check_same(first: Tensors, second: Tensors) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype, name
        assert torch.equal(second[name].view(torch.uint8), tensor.view(torch.uint8)), name


def check_decoded(path: Path, decode: Any) -> None:
    """``decode(module's leaves) -> [outputs, inputs]`` in torch gives what Linnet's reader gives."""
    stored = tensors_of(path)
    with Checkpoint.open(path) as checkpoint:
        modules = checkpoint.schemes()
        assert len(modules) == 14
        for module in modules:
            leaves = {name.removeprefix(f"{module}."): t for name, t in stored.items() if name.startswith(f"{module}.")}
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            assert np.array_equal(ours.dequantize(), decode(leaves).float().numpy()), module


def config_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / "config.json").read_text())["quantization_config"]
    return record


ZERO_POINTS_OF_ZERO = (2, 16, False, False, False)
V1 = [form for form in gptq.FORMS if not form[-1] and form != ZERO_POINTS_OF_ZERO]


@pytest.mark.parametrize("form", V1, ids=lambda form: "-".join(map(str, form)))
def test_gptq_comes_out_as_it_went_in(form: tuple[Any, ...], tmp_path: Path) -> None:
    written = gptq.pair(tmp_path, *form, head=form[0] == 8)
    made = convert(written.quantised, tmp_path / "out", "gptq", exact=True)
    assert made.verified
    check_same(tensors_of(written.quantised), tensors_of(tmp_path / "out"))
    ours, theirs = config_of(tmp_path / "out"), gptq.record(*form)
    assert {key: ours[key] for key in theirs if key != "desc_act"} == {
        k: v for k, v in theirs.items() if k != "desc_act"
    }
    assert ours["desc_act"] == (form[3] and form[1] != -1)
    assert ours["lm_head"] == (form[0] == 8)
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def test_gptq_of_version_2_becomes_version_1(tmp_path: Path) -> None:
    written = gptq.pair(tmp_path, 4, 16, True, True, True)
    assert convert(written.quantised, tmp_path / "out", "gptq", exact=True).verified
    assert config_of(tmp_path / "out")["checkpoint_format"] == "gptq"
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def test_a_zero_point_of_0_is_not_written(tmp_path: Path) -> None:
    written = gptq.pair(tmp_path, *ZERO_POINTS_OF_ZERO)
    with pytest.raises(UnsupportedError, match="gptq: its scales or zero points cannot be stored"):
        convert(written.quantised, tmp_path / "exact", "gptq", exact=True)
    assert 0 < convert(written.quantised, tmp_path / "out", "gptq").relative_error < 0.05
    check_decoded(tmp_path / "out", decode_gptq(2))  # which asserts that there is none


def unpacked(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """int32 [words, n] -> codes [words * 32 / bits, n]: the little-endian stream of bits down a column."""
    stream = (words.to(torch.int64)[:, None, :] >> torch.arange(32)[None, :, None]) & 1
    return (stream.reshape(-1, bits, words.shape[1]) << torch.arange(bits)[None, :, None]).sum(1)


def decode_gptq(bits: int) -> Any:
    def decode(leaves: Tensors) -> "torch.Tensor":
        zeros = (unpacked(leaves["qzeros"].T, bits).T + 1) & (2**bits - 1)
        assert int(zeros.min()) >= 1
        index = leaves["g_idx"].long()
        codes = unpacked(leaves["qweight"], bits)
        return ((codes - zeros[index]).float() * leaves["scales"].float()[index]).T

    return decode


@pytest.mark.parametrize("kind", ["", ":W4A16-g16-asym", ":W8A16-channel", ":W3A16-g32-asym", ":W2A16-g32"])
def test_a_plain_model_as_gptq(kind: str, tmp_path: Path) -> None:
    made = convert(dense(tmp_path / "dense"), tmp_path / "out", f"gptq{kind}")
    bits = int(kind[2]) if kind else 4
    assert config_of(tmp_path / "out")["bits"] == bits
    assert 0 < made.relative_error < {2: 0.5, 3: 0.3, 4: 0.13, 8: 0.02}[bits]
    check_decoded(tmp_path / "out", decode_gptq(bits))


def test_modules_of_several_schemes_are_named_in_gptqs_rules(tmp_path: Path) -> None:
    general, special = (4, 32, True, False, False), (8, 16, False, False, False)

    def encode(module: str, weight: "torch.Tensor") -> Any:
        return gptq.encoder(*(special if "down_proj" in module else general))(module, weight)

    rules = {r".*\.down_proj": {"bits": 8, "group_size": 16, "sym": False}}
    written = write_pair(llama(), tmp_path, gptq.record(*general) | {"dynamic": rules}, encode)
    assert convert(written.quantised, tmp_path / "out", "gptq", exact=True).verified
    dynamic = config_of(tmp_path / "out")["dynamic"]
    assert dynamic[r"+:^model\.layers\.1\.mlp\.down_proj$"] == special_record(special)
    assert len(dynamic) == 2
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")
    common = convert(written.quantised, tmp_path / "common", "gptq:W4A16-g32")
    assert common.relative_error > 0
    assert "dynamic" not in config_of(tmp_path / "common")


def special_record(form: tuple[int, int, bool, bool, bool]) -> dict[str, Any]:
    return {"bits": form[0], "group_size": form[1], "sym": form[2], "desc_act": form[3]}


@pytest.mark.parametrize("group", [32, 16, -1])
def test_awq_comes_out_as_it_went_in(group: int, tmp_path: Path) -> None:
    form = (group, False, True)
    written = write_pair(llama(), tmp_path, awq.record(*form), awq.encoder(*form))
    to = "awq:W4A16-channel" if group == -1 else "awq"
    assert convert(written.quantised, tmp_path / "out", to, exact=True).verified
    check_same(tensors_of(written.quantised), tensors_of(tmp_path / "out"))
    assert config_of(tmp_path / "out") == awq.record(*form) | {"version": "gemm"}


def decode_awq(leaves: Tensors) -> "torch.Tensor":
    shifts = torch.tensor([0, 16, 4, 20, 8, 24, 12, 28])  # of the outputs 0 1 2 3 4 5 6 7 of a word

    def nibbles(words: "torch.Tensor") -> "torch.Tensor":
        return ((words.to(torch.int64)[:, :, None] >> shifts) & 15).reshape(words.shape[0], -1)

    size = leaves["qweight"].shape[0] // leaves["scales"].shape[0]
    zeros = nibbles(leaves["qzeros"]).repeat_interleave(size, 0)
    return ((nibbles(leaves["qweight"]) - zeros).float() * leaves["scales"].float().repeat_interleave(size, 0)).T


@pytest.mark.parametrize(
    "form", [(4, 32, True, False, False), (4, -1, False, False, False), (3, 32, True, False, True)]
)
def test_gptq_becomes_awq(form: tuple[int, int, bool, bool, bool], tmp_path: Path) -> None:
    written = gptq.pair(tmp_path, *form)
    assert convert(written.quantised, tmp_path / "out", "awq", exact=True).verified
    check_decoded(tmp_path / "out", decode_awq)
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def test_activation_order_is_beyond_awq(tmp_path: Path) -> None:
    written = gptq.pair(tmp_path, 4, 32, True, True, False)
    with pytest.raises(UnsupportedError, match="awq has no word for its numbers"):
        convert(written.quantised, tmp_path / "out", "awq", exact=True)
    assert 0 < convert(written.quantised, tmp_path / "out", "awq").relative_error < 0.1


def test_a_plain_model_as_awq(tmp_path: Path) -> None:
    made = convert(dense(tmp_path / "dense"), tmp_path / "out", "awq")
    assert 0 < made.relative_error < 0.11
    assert config_of(tmp_path / "out")["modules_to_not_convert"] == ["lm_head"]
    check_decoded(tmp_path / "out", decode_awq)


def test_nf4_comes_out_as_it_went_in(tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, bnb.record("nf4", False), bnb.encoder("nf4", False))
    assert convert(written.quantised, tmp_path / "out", "bitsandbytes", exact=True).verified
    first, second = tensors_of(written.quantised), tensors_of(tmp_path / "out")
    states = {name for name in first if "quant_state" in name}
    assert states == {name for name in second if "quant_state" in name}
    for name in states:
        theirs, ours = (json.loads(bytes(side[name].tolist())) for side in (first, second))
        assert theirs | {"dtype": "bfloat16"} == ours  # what to compute in, which a config may say
    check_same(*({name: t for name, t in side.items() if name not in states} for side in (first, second)))
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def test_double_quantisation_becomes_single(tmp_path: Path) -> None:
    written = write_pair(llama(), tmp_path, bnb.record("nf4", True), bnb.encoder("nf4", True))
    assert convert(written.quantised, tmp_path / "out", "bitsandbytes", exact=True).verified
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def decode_nf4(leaves: Tensors) -> "torch.Tensor":
    state = json.loads(bytes(leaves["weight.quant_state.bitsandbytes__nf4"].tolist()))
    stored = leaves["weight"].reshape(-1).long()
    codes = torch.stack([stored >> 4, stored & 15], 1).reshape(-1, state["blocksize"])
    return (bnb.NF4[codes] * leaves["weight.absmax"][:, None]).reshape(state["shape"])


def decode_nf4_with_the_library(leaves: Tensors) -> "torch.Tensor":
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    parts = {name: tensor for name, tensor in leaves.items() if name != "weight"}
    state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
    assert state.dtype == torch.bfloat16
    state.dtype = torch.float32
    return functional.dequantize_4bit(leaves["weight"], state)


def wide(folder: Path) -> Path:
    """As ``dense``, but every width is a multiple of 64."""
    model = llama()
    config = type(model.config)(**{**model.config.to_dict(), "intermediate_size": 192})
    torch.manual_seed(SEED)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("decode", [decode_nf4, decode_nf4_with_the_library])
def test_a_plain_model_as_nf4(decode: Any, tmp_path: Path) -> None:
    made = convert(wide(tmp_path / "dense"), tmp_path / "out", "bitsandbytes")
    assert 0 < made.relative_error < 0.1
    check_decoded(tmp_path / "out", decode)


def test_what_nf4_cannot_hold_stays_plain(tmp_path: Path) -> None:
    convert(dense(tmp_path / "dense"), tmp_path / "out", "bitsandbytes")
    skipped = config_of(tmp_path / "out")["llm_int8_skip_modules"]
    assert skipped == ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert len(checkpoint.schemes()) == 12


@pytest.mark.parametrize("name", ["blocks", "tensors"])
def test_fp8_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    record, encode = fp8.FORMS[name]
    written = write_pair(llama(), tmp_path, record, encode)
    assert convert(written.quantised, tmp_path / "out", "fp8", exact=True).verified
    if name == "blocks":
        check_same(tensors_of(written.quantised), tensors_of(tmp_path / "out"))
    assert config_of(tmp_path / "out")["weight_block_size"] == ([32, 32] if name == "blocks" else [128, 128])
    check_numbers(tmp_path / "out", written)


def check_numbers(path: Path, written: Pair) -> None:
    with Checkpoint.open(path) as checkpoint:
        for module, value in written.meaning.items():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            assert np.array_equal(ours.dequantize(), value)


def decode_fp8(leaves: Tensors) -> "torch.Tensor":
    rows, columns = leaves["weight"].shape
    scales = leaves["weight_scale_inv"].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return leaves["weight"].float() * scales


def test_a_plain_model_as_fp8(tmp_path: Path) -> None:
    made = convert(dense(tmp_path / "dense"), tmp_path / "out", "fp8")
    assert 0 < made.relative_error < 0.03
    check_decoded(tmp_path / "out", decode_fp8)


def test_mxfp4_comes_out_as_it_went_in(tmp_path: Path) -> None:
    record = fp4.record("mxfp4-pack-quantized", fp4.MX)
    written = write_pair(llama(), tmp_path, record, fp4.four_bit_floats(False))
    assert convert(written.quantised, tmp_path / "out", "mxfp4", exact=True).verified
    check_same(tensors_of(written.quantised), tensors_of(tmp_path / "out"))
    check_pair(Pair(tmp_path / "out", written.dense, written.meaning), "reference")


def decode_mxfp4(leaves: Tensors) -> "torch.Tensor":
    stored = leaves["weight_packed"].long()
    codes = torch.stack([stored & 15, stored >> 4], 2).flatten(1)
    values = fp4.E2M1[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    scales = torch.exp2(leaves["weight_scale"].float() - 127)
    return values * scales.repeat_interleave(32, 1)


def test_a_plain_model_as_mxfp4(tmp_path: Path) -> None:
    made = convert(dense(tmp_path / "dense"), tmp_path / "out", "mxfp4")
    assert 0 < made.relative_error < 0.13
    check_decoded(tmp_path / "out", decode_mxfp4)


FAMILIES = ("llama-2-biases", "llama-3-tied", "qwen3", "gemma-3", "phi-3", "gpt-neox", "bloom-bare")


@pytest.mark.parametrize("tiny", [tiny for tiny in TINY_MODELS if tiny.name in FAMILIES], ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("to", ["gptq", "awq", "fp8"])
def test_every_family_is_written(tiny: TinyModel, to: str, tmp_path: Path) -> None:
    """Fused, tied, bare ones: each linear inside the layers is quantised, nothing else, and the result is a model."""
    write(tiny, tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "out", to)
    source, made = load_model(tmp_path / "dense"), load_model(tmp_path / "out")
    linears = {info.module for info in source.linears() if info.kind == "linear"}
    assert made.checkpoint.schemes().keys() == linears != set()
    assert {info.module for info in made.linears() if info.kind == "linear"} == linears
    assert not any(is_embedding(module) or is_head(module) for module in linears)


@pytest.mark.parametrize("to", ["fp8", "mxfp4"])
def test_transformers_reads_what_is_written(to: str, tmp_path: Path) -> None:
    convert(dense(tmp_path / "dense"), tmp_path / "out", to)
    more: dict[str, Any] = {}
    if to == "fp8":  # its kernels want a GPU, its dequantising does not
        more["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    else:
        pytest.importorskip("compressed_tensors")
        more["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **more).eval()
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        for module in checkpoint.schemes():
            ours = checkpoint.linear(module)
            assert isinstance(ours, PackedWeight)
            found = theirs.get_submodule(module).weight.detach().float().numpy()
            assert np.abs(found - ours.dequantize()).max() <= 1e-6, module
    if to == "fp8":  # they leave inputs as they are when they dequantise
        return
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in (13, 3, 8)]
    executable = choose_backend("reference").prepare(load_model(tmp_path / "out"), "exact", LIMITS)
    found = stepping.run(executable, prompts, (5, 1, 1), SEED)
    for a, b in zip(found, reference_logits(theirs, prompts), strict=True):
        assert np.abs(a - b.numpy()).max() <= 2e-4 * max(1.0, float(b.abs().max()))
