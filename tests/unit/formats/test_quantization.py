# SPDX-License-Identifier: Apache-2.0
"""quantization_config: what is understood, what is refused in a sentence, who is targeted."""

from typing import Any

import pytest

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.canonical_written import quantization_record
from linnet.formats.quantization import read_quantization
from linnet.schemes import LinearScheme, Scheme, parse_scheme

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def record(weights: Any = WEIGHTS, **changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, **changes.pop("group", {})}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            **changes,
        }
    }


def test_dense_models_have_none() -> None:
    assert read_quantization({}, "config.json").groups == ()


def test_both_keys_are_read() -> None:
    value = record()["quantization_config"]
    for key in ("quantization_config", "compression_config"):
        assert read_quantization({key: value}, "c").scheme_of("x") == LinearScheme(Scheme("int4", "group", 32))


@pytest.mark.parametrize(
    "name", ["W4A16", "W4A16-g32-asym", "W8A8", "W4A8", "W8A16", "W3A16", "FP8", "FP8_DYNAMIC", "NF4", "TERNARY"]
)
def test_what_is_written_is_read(name: str) -> None:
    linear = parse_scheme(name).linear
    modules = {f"layers.{i}.up": linear for i in range(3)}
    config = {"quantization_config": quantization_record(modules, ["embed", "lm_head"])}
    read = read_quantization(config, "config.json")
    assert read.scheme_of("layers.1.up") == linear
    assert read.scheme_of("lm_head") is None
    assert read.scheme_of("embed") is None
    assert read.method == ("linnet" if name in ("NF4", "TERNARY") else "compressed-tensors")


def test_several_schemes_and_a_tied_head() -> None:
    int4, int8 = parse_scheme("W4A16").linear, parse_scheme("W8A16").linear
    modules = {"a.0.up": int4, "a.0.down": int8, "a.1.up": int4}
    value = quantization_record(modules, ["model.embed_tokens"])
    assert value["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert value["config_groups"]["group_1"]["targets"] == ["a.0.down"]
    assert "lm_head" in value["ignore"]
    read = read_quantization({"quantization_config": value}, "c")
    assert {name: read.scheme_of(name) for name in modules} == modules
    assert read.scheme_of("lm_head") is None


def test_a_quantised_head_is_not_ignored() -> None:
    int4, int8 = parse_scheme("W4A16").linear, parse_scheme("W8A16").linear
    value = quantization_record({"a.up": int4, "a.down": int4, "lm_head": int8}, ["embed_tokens"])
    assert "lm_head" not in value["ignore"]
    assert read_quantization({"quantization_config": value}, "c").scheme_of("lm_head") == int8


def test_names_beat_patterns_beat_classes() -> None:
    groups = {
        "any": {"targets": ["Linear"], "weights": WEIGHTS},
        "pattern": {"targets": ["re:.*down$"], "weights": {**WEIGHTS, "group_size": 64}},
        "name": {"targets": ["a.down"], "weights": {**WEIGHTS, "group_size": 128}},
    }
    read = read_quantization(record(config_groups=groups, ignore=["re:skip.*"]), "c")

    def group_size(name: str) -> int | None:
        scheme = read.scheme_of(name)
        return None if scheme is None else scheme.weight.group_size

    assert [group_size(name) for name in ("a.up", "b.down", "a.down", "skipped.down")] == [32, 64, 128, None]


@pytest.mark.parametrize(
    ("cache", "element"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}, "fp8_e4m3"),
        ({"num_bits": 8, "type": "int", "strategy": "attn_head"}, "int8"),
        ({"num_bits": 4, "type": "int", "strategy": "token", "dynamic": True}, "int4"),
        (None, None),
    ],
)
def test_the_kv_cache_s_numbers_are_read(cache: dict[str, Any] | None, element: str | None) -> None:
    assert read_quantization(record(kv_cache_scheme=cache), "c").kv_element == element


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "quip": ({"quantization_config": {"quant_method": "quip"}}, "quant_method 'quip'"),
    "linnet of the future": (record(quant_method="linnet", version=9), "version 9"),
    "marlin": (record(format="marlin-24"), "format 'marlin-24'"),
    "group format": (record(group={"format": "mxfp8-quantized"}), "mxfp8"),
    "linnet layout elsewhere": (record(format="linnet"), "format 'linnet'"),
    "nf4 elsewhere": (record({**WEIGHTS, "type": "nf4"}), "'nf4' is not supported"),
    "ternary elsewhere": (record({**WEIGHTS, "num_bits": 2, "type": "ternary"}), "'ternary' is not supported"),
    "ternary in three bits": (
        record({**WEIGHTS, "num_bits": 3, "type": "ternary"}, quant_method="linnet", version=1),
        "3-bit 'ternary'",
    ),
    "kv cache with zero points": (record(kv_cache_scheme={"num_bits": 8, "symmetric": False}), "asymmetric int8"),
    "kv cache of 3 bits": (record(kv_cache_scheme={"num_bits": 3}), "supported: symmetric int8, fp8_e4m3, int4"),
    "kv cache per channel": (record(kv_cache_scheme={"num_bits": 8, "strategy": "channel"}), "attn_head"),
    "sparse": (record(sparsity_config={"format": "sparse-bitmask"}), "sparsity format 'sparse-bitmask' is not"),
    "sparse, of another pattern": (
        record(sparsity_config={"format": "sparse-24-bitmask", "sparsity_structure": "unstructured"}),
        "sparsity_structure 'unstructured' is not supported; supported: 2:4",
    ),
    "experts": (record(moe_sparsity_config={}), "moe_sparsity_config"),
    "float 3": (record({**WEIGHTS, "num_bits": 3, "type": "float"}), "3-bit 'float'"),
    "five bits": (record({**WEIGHTS, "num_bits": 5}), "5-bit 'int'"),
    "bits as text": (record({**WEIGHTS, "num_bits": "4"}), "is not supported"),
    "MX scales": (record({**WEIGHTS, "scale_dtype": "torch.uint8"}), "MX or NV"),
    "tensor_group": (record({**WEIGHTS, "strategy": "tensor_group"}), "strategy 'tensor_group'"),
    "dynamic weights": (record({**WEIGHTS, "dynamic": True}), "dynamic weight scales"),
    "local": (record(group={"input_activations": {**WEIGHTS, "dynamic": "local"}}), "dynamic 'local'"),
    "unknown key": (record({**WEIGHTS, "surprise": 1}), "unknown key 'surprise'"),
    "outputs": (record(group={"output_activations": WEIGHTS}), "output_activations"),
    "no weights": (record(None), "without weights"),
    "preset by name": (record(config_groups={"W4A16": ["Linear"]}), "scheme by name"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refusals(name: str) -> None:
    config, expected = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError) as caught:
        read_quantization(config, "m/config.json")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("m/config.json: quantization_config")


BROKEN: dict[str, dict[str, Any]] = {
    "groups": record(config_groups=[]),
    "group": record(config_groups={"a": 3}),
    "targets": record(group={"targets": "Linear"}),
    "target": record(group={"targets": [3]}),
    "pattern": record(group={"targets": ["re:("]}),
    "ignore": record(ignore="lm_head"),
    "weights": record([]),
    "group size": record({**WEIGHTS, "group_size": "32"}),
    "no group size": record({**WEIGHTS, "group_size": None}),
    "zero group size": record({**WEIGHTS, "group_size": 0}),
    "block": record({**WEIGHTS, "strategy": "block", "group_size": None, "block_structure": [128]}),
    "fp8 with zero point": record({"num_bits": 8, "type": "float", "symmetric": False, "strategy": "channel"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_records(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_quantization(BROKEN[name], "m/config.json")
    assert str(caught.value).startswith("m/config.json: quantization_config")
