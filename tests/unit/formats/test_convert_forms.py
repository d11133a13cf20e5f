# SPDX-License-Identifier: Apache-2.0
"""The bundled model in the forms in which quantised models are published: what they can hold, what they cannot, what is
said, and what lies on the disk after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import DEMO, gguf, hash_of, quantised

from linnet.errors import ConfigError, UnsupportedError
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.formats.convert import Conversion, parse_target, to_directory, to_gguf
from linnet.formats.convert.rounding import round_weight
from linnet.models import load_model
from linnet.schemes import LinearScheme, PackedWeight, Scheme, dequantize, pack, quantize_weight

FORMS = ("gptq", "awq", "bitsandbytes", "fp8", "mxfp4")
UP = "model.layers.0.mlp.up_proj"


def convert(source: Path, target: Path, to: str, **options: Any) -> Conversion:
    with Checkpoint.open(source) as checkpoint:
        plain = not checkpoint.schemes()
        linears = [info.module for info in load_model(checkpoint).linears() if info.kind == "linear"] if plain else []
        return to_directory(checkpoint, target, parse_target(to), {}, linears=linears, threads=2, **options)


def with_layers(directory: Path, schemes: dict[str, LinearScheme]) -> Path:
    """The bundled model with the modules whose names end so in these schemes."""
    with Checkpoint.open(DEMO) as source, CheckpointWriter(directory) as writer:
        for name in source.names():
            module = name.removesuffix(".weight")
            scheme = next((scheme for end, scheme in schemes.items() if module.endswith(end)), None)
            if scheme is None:
                writer.add(name, source.tensor(name))
            else:
                writer.add_packed(module, quantize_weight(source.tensor(name), scheme))
        writer.publish(source.config)
    return directory


@pytest.mark.parametrize("to", FORMS)
def test_what_it_costs_is_said_before_anything_is_there(to: str, tmp_path: Path) -> None:
    told: list[Conversion] = []

    def announce(made: Conversion) -> None:
        assert not (tmp_path / "out").exists()
        told.append(made)

    made = convert(DEMO, tmp_path / "out", to, announce=announce)
    assert told == [made]
    assert made.verified is None
    with Checkpoint.open(DEMO) as before, Checkpoint.open(tmp_path / "out") as after:
        assert after.nbytes == made.target_bytes
        errors = powers = 0.0
        for name in before.names():
            weight = after.linear(name.removesuffix(".weight"))
            numbers = weight.dequantize() if isinstance(weight, PackedWeight) else weight.astype(np.float32)
            original = before.tensor(name).astype(np.float64)
            errors, powers = errors + ((numbers - original) ** 2).sum(), powers + (original**2).sum()
        assert made.relative_error == pytest.approx(np.sqrt(errors / powers), rel=1e-5)
        assert after.scheme_of("model.embed_tokens") is None
        assert len(after.schemes()) == 35
    with pytest.raises(UnsupportedError, match=rf"{to}: rounding to \w+ changes its numbers"):
        convert(DEMO, tmp_path / "exact", to, exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("to", FORMS)
def test_interrupted_and_resumed(to: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(name: str, done: int, total: int) -> None:
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        convert(DEMO, tmp_path / "out", to, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".out.linnet-partial"]
    with pytest.raises(ConfigError, match="the unfinished output of another run"):
        convert(DEMO, tmp_path / "out", "dense")
    made, whole = convert(DEMO, tmp_path / "out", to), convert(DEMO, tmp_path / "whole", to)
    assert made.tensors == whole.tensors
    for name in ("model.safetensors", "config.json", "linnet_manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("gptq:W5A16", "'W5A16' is not a scheme"),
        ("gptq:FP8", "'FP8' is nothing that gptq is written in; accepted: gptq:W2A16, gptq:W3A16"),
        ("gptq:W4A8", "'W4A8' is nothing that gptq"),
        ("awq:W8A16", "'W8A16' is nothing that awq is written in; accepted: awq:W4A16, each with -gN"),
        ("awq:W4A16-head8", "is nothing that awq"),
        ("bitsandbytes:FP4", "bitsandbytes takes no type, not 'FP4': it is written as NF4 in blocks of 64"),
        ("fp8:e5m2", "fp8 takes no type, not 'e5m2': it is written as e4m3 in blocks of 128 x 128"),
        ("mxfp4:g16", "mxfp4 takes no type"),
    ],
)
def test_types_that_a_form_has_not(to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_target(to)


@pytest.mark.parametrize("text", ["GPTQ", "gptq:w8a16-g32", "awq", "awq:W4A16-G64", "bitsandbytes", "fp8", "mxfp4"])
def test_targets_by_name(text: str) -> None:
    assert str(parse_target(text)).upper() == text.upper()


def test_linears_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="gptq cannot hold 35 of the model's linears") as error:
        convert(DEMO, tmp_path / "out", "gptq:W4A16-g96")
    assert "down_proj: group size 96 does not divide its 640 columns" in str(error.value)
    assert "and 30 more" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scheme", "to"),
    [
        (Scheme("int4", "group", 32), "gptq"),
        (Scheme("int4", "channel", symmetric=False, scale_dtype="fp16"), "gptq"),
        (Scheme("int8", "tensor"), "gptq"),
        (Scheme("ternary", "channel"), "gptq"),
        (Scheme("binary", "channel"), "gptq"),
        (Scheme("int3", "group", 64, symmetric=False), "awq"),
        (Scheme("int4", "tensor"), "awq"),
        (Scheme("nf4", "group", 128), "bitsandbytes"),
        (Scheme("fp8_e4m3", "tensor"), "fp8"),
        (Scheme("fp8_e4m3", "block", block=(64, 128), scale_dtype="fp32"), "fp8"),
    ],
)
def test_codes_are_carried_over(scheme: Scheme, to: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "source", scheme)
    made = convert(source, tmp_path / "out", to, exact=True)
    assert made.verified
    assert hash_of(tmp_path / "out") == hash_of(source) == made.sha256
    back = convert(tmp_path / "out", tmp_path / "back", "compressed-tensors") if scheme.element != "nf4" else made
    assert back.exact


@pytest.mark.parametrize(
    ("scheme", "to", "holders"),
    [
        (Scheme("nf4", "group", 64), "compressed-tensors", "bitsandbytes, dense:F32"),
        (Scheme("int4", "group", 32, scale_dtype="fp16"), "fp8", "compressed-tensors, gptq, dense:F32"),
        (Scheme("fp8_e4m3", "channel"), "fp8", "compressed-tensors, dense:F32"),
    ],
)
def test_the_forms_that_hold_what_this_one_does_not(scheme: Scheme, to: str, holders: str, tmp_path: Path) -> None:
    source = quantised(tmp_path / "source", scheme)
    with pytest.raises(UnsupportedError, match=f"{to} has no word for its numbers; that hold them: {holders}"):
        convert(source, tmp_path / "out", to, exact=True)


def test_blocks_of_a_gguf_file_are_carried_over(tmp_path: Path) -> None:
    gguf(quantised(tmp_path / "source", Scheme("int4", "group", 32, scale_dtype="fp16")), tmp_path / "m.gguf", "Q4_0")
    for to in ("gptq", "awq"):
        made = convert(tmp_path / "m.gguf", tmp_path / to, to, exact=True)
        assert made.verified
        assert made.sha256 == hash_of(tmp_path / "m.gguf")


def test_blocks_that_no_codes_mean_are_rounded_alike(tmp_path: Path) -> None:
    gguf(DEMO, tmp_path / "m.gguf", "Q4_K")
    with pytest.raises(UnsupportedError, match="gptq has no word for its numbers"):
        convert(tmp_path / "m.gguf", tmp_path / "out", "gptq", exact=True)
    made = convert(tmp_path / "m.gguf", tmp_path / "out", "gptq")
    assert 0 < made.relative_error < 0.08
    assert made.types().keys() == {"int4 in groups", "F16", "F32"}
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert len(set(checkpoint.schemes().values())) == 1
        assert checkpoint.config["quantization_config"]["group_size"] == 32
        assert checkpoint.info("model.embed_tokens.weight").dtype == "fp16"


def test_embedding_and_head_become_plain_where_a_form_has_no_word_for_them(tmp_path: Path) -> None:
    eight = LinearScheme(Scheme("int8", "channel", scale_dtype="fp16"))
    source = with_layers(tmp_path / "source", {"_proj": eight, "embed_tokens": eight})
    made = convert(source, tmp_path / "exact", "gptq", exact=True)
    assert made.types()["F32"] >= 0
    assert made.verified
    small = convert(source, tmp_path / "small", "gptq")
    with Checkpoint.open(tmp_path / "exact") as exact, Checkpoint.open(tmp_path / "small") as rounded:
        assert exact.info("model.embed_tokens.weight").dtype == "fp32"
        assert rounded.info("model.embed_tokens.weight").dtype == "fp16"
        assert exact.scheme_of("model.embed_tokens") is None
    assert 0 < small.relative_error < 1e-3


def test_what_a_quantised_model_left_alone_stays_alone(tmp_path: Path) -> None:
    four = LinearScheme(Scheme("int4", "group", 32, scale_dtype="fp16"))
    source = with_layers(tmp_path / "source", {"up_proj": four, "gate_proj": four})
    left = "model.layers.0.mlp.down_proj"
    for to, key in (("gptq", "dynamic"), ("awq", "modules_to_not_convert")):
        assert convert(source, tmp_path / to, to, exact=True).verified
        with Checkpoint.open(tmp_path / to) as checkpoint:
            named = checkpoint.config["quantization_config"][key]
            assert (rf"-:^{left.replace('.', chr(92) + '.')}$" if to == "gptq" else left) in named
            assert not any("up_proj" in name or "embed" in name for name in named)
            assert checkpoint.scheme_of(left) is None
            load_model(checkpoint)


def test_groups_that_cannot_be_carried_are_rounded_and_the_others_kept(tmp_path: Path) -> None:
    """GPTQ never writes the zero point 0: a group of numbers above zero is rounded anew, its neighbours are not."""
    scheme = LinearScheme(Scheme("int4", "group", 32, symmetric=False, scale_dtype="fp16"))
    with Checkpoint.open(DEMO) as source, CheckpointWriter(tmp_path / "source") as writer:
        for name in source.names():
            if name != f"{UP}.weight":
                writer.add(name, source.tensor(name))
                continue
            weight = quantize_weight(source.tensor(name), scheme)
            zero_points, codes = weight.zero_points(), weight.codes().copy()
            assert zero_points is not None
            zero_points[3, 1], codes[3, 32:64] = -8, np.arange(32) % 16 - 8
            writer.add_packed(UP, pack(codes, weight.scales(), zero_points, scheme))
        writer.publish(source.config)
    with pytest.raises(UnsupportedError, match="gptq: its scales or zero points cannot be stored"):
        convert(tmp_path / "source", tmp_path / "exact", "gptq", exact=True)
    made = convert(tmp_path / "source", tmp_path / "out", "gptq")
    assert 0 < made.relative_error < 1e-3
    with Checkpoint.open(tmp_path / "source") as before, Checkpoint.open(tmp_path / "out") as after:
        first, second = before.linear(UP), after.linear(UP)
        assert isinstance(first, PackedWeight)
        assert isinstance(second, PackedWeight)
        off = np.abs(first.dequantize() - second.dequantize())
        found = second.zero_points()
        assert found is not None
        assert found.min() >= -7
    assert off[3, 32:64].max() > 0
    off[3, 32:64] = 0
    assert not off.any()


@pytest.mark.parametrize(
    ("scheme", "gain"),
    [
        (Scheme("int4", "group", 64, scale_dtype="fp16"), 0.97),
        (Scheme("int3", "group", 64, symmetric=False, scale_dtype="fp16"), 0.93),
        (Scheme("nf4", "group", 64, scale_dtype="fp32"), 1.0),
        (Scheme("fp4_e2m1", "group", 32, scale_dtype="e8m0"), 0.97),
        (Scheme("fp8_e4m3", "block", block=(128, 128), scale_dtype="fp32"), 1.0),
    ],
)
def test_rounding_loses_no_more_than_to_the_extremes(scheme: Scheme, gain: float) -> None:
    values = np.random.default_rng(0).standard_t(4, (128, 512)).astype(np.float32)
    values[5] = 0
    codes, scales, zero_points = round_weight(values, scheme, int(scheme.numbers.smallest))
    error = np.square(dequantize(codes, scheme, scales, zero_points) - values).sum()
    plain = np.square(quantize_weight(values, LinearScheme(scheme)).dequantize() - values).sum()
    print(f"{scheme.element}: {error / plain:.3f} of the plain error")
    assert error <= gain * plain
    assert not dequantize(codes, scheme, scales, zero_points)[5].any()


def test_zero_points_below_the_lowest_are_not_made() -> None:
    scheme = Scheme("int4", "group", 32, symmetric=False, scale_dtype="fp16")
    values = np.abs(np.random.default_rng(1).normal(size=(64, 256))).astype(np.float32)
    codes, scales, zero_points = round_weight(values, scheme, -7)
    assert zero_points is not None
    assert zero_points.min() == -7
    assert np.abs(dequantize(codes, scheme, scales, zero_points) - values).max() < 0.3


CACHED = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "group_size": None, "dynamic": False}


def prescribing(directory: Path, scheme: LinearScheme) -> Path:
    """The bundled model with its linears in ``scheme``, static scales and a KV cache of fp8 with its scales."""
    with Checkpoint.open(DEMO) as source, CheckpointWriter(directory) as writer:
        for name in source.names():
            if "proj" not in name:
                writer.add(name, source.tensor(name))
                continue
            packed = quantize_weight(source.tensor(name), scheme)
            if scheme.input is not None and not scheme.input.dynamic:
                packed = replace(packed, arrays={**packed.arrays, "input_scale": np.array([0.05], np.float32)})
            writer.add_packed(name.removesuffix(".weight"), packed)
        for layer in range(5):
            for leaf in ("k_scale", "v_scale"):
                writer.add(f"model.layers.{layer}.self_attn.{leaf}", np.array([0.1 + layer], np.float32))
        record = {"kv_cache_scheme": CACHED, "ignore": ["model.layers.1.self_attn", "lm_head"]}
        writer.publish({**source.config, "quantization_config": record})
    return directory


@pytest.mark.parametrize("dynamic", [True, False])
def test_what_is_rounded_at_run_time_is_carried_over_or_said_to_be_lost(dynamic: bool, tmp_path: Path) -> None:
    inputs = Scheme("int8", "token", dynamic=True) if dynamic else Scheme("int8", "tensor")
    source = prescribing(tmp_path / "source", LinearScheme(Scheme("int8", "channel"), inputs))
    kept = convert(source, tmp_path / "kept", "compressed-tensors", exact=True)
    assert kept.exact
    assert kept.dropped == ()
    before, after = load_model(source), load_model(tmp_path / "kept")
    assert after.program == before.program  # what each input is rounded to, and each layer's KV
    assert [isinstance(state.dtype, Scheme) for state in after.program.states] == [True, False, True, True, True]
    assert set(after.checkpoint.names()) == set(before.checkpoint.names())
    for name in before.checkpoint.names():
        if name.endswith(("input_scale", "k_scale", "v_scale")):
            assert np.array_equal(before.checkpoint.tensor(name), after.checkpoint.tensor(name)), name
    shown = "dynamic int8 per token" if dynamic else "static int8 per tensor"
    none, cache = (
        f"35 linears prescribe {shown} activations, the result none",
        "the source prescribes a KV cache of fp8_e4m3, the result none",
    )
    for to, said in (
        ("gptq:W8A16", (none, cache)),
        ("dense", (none, cache)),
        ("fp8", (none.replace("none", "dynamic fp8_e4m3 per group of 128 activations"), cache)),
    ):
        made = convert(source, tmp_path / to.replace(":", "-"), to)
        assert made.dropped == said
    with Checkpoint.open(source) as checkpoint:
        made = to_gguf(checkpoint, tmp_path / "out.gguf", "Q8_0", {})
    assert made.dropped == (none, cache)
