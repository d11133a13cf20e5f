# SPDX-License-Identifier: Apache-2.0
"""Names of schemes, the map from modules to schemes, group sizes that fit."""

import pytest

from linnet.errors import ConfigError
from linnet.schemes import (
    LinearScheme,
    Scheme,
    SchemeMap,
    check_shapes,
    fit_groups,
    fitting_groups,
    largest_fitting_group,
    parse_scheme,
)

INT4 = LinearScheme(Scheme("int4", "group", 128))
INT8 = LinearScheme(Scheme("int8", "channel"))
PER_TOKEN = Scheme("int8", "token", dynamic=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "rows"}, "unknown granularity 'rows'; accepted: tensor, channel, group, token, head, block"),
        ({"granularity": None}, "unknown granularity None"),
        ({"scale_dtype": "fp8"}, "unknown scale type 'fp8'; accepted: fp32, bf16, fp16"),
        ({"scale_dtype": "float32"}, "unknown scale type 'float32'"),
    ],
)
def test_a_scheme_knows_its_words(fields, message):
    with pytest.raises(ConfigError, match=message):
        Scheme(**{"element": "int8", "granularity": "channel", **fields})


@pytest.mark.parametrize(
    ("name", "linear", "head"),
    [
        ("W4A16", INT4, None),
        ("w4a16-G32", LinearScheme(Scheme("int4", "group", 32)), None),
        ("W4A16-asym", LinearScheme(Scheme("int4", "group", 128, symmetric=False)), None),
        ("W4A16-channel-asym", LinearScheme(Scheme("int4", "channel", symmetric=False)), None),
        ("W8A16", INT8, None),
        ("W8A8", LinearScheme(Scheme("int8", "channel"), PER_TOKEN), None),
        ("W4A8", LinearScheme(Scheme("int4", "group", 128), PER_TOKEN), None),
        ("W2A16", LinearScheme(Scheme("int2", "group", 32)), None),
        ("W3A16", LinearScheme(Scheme("int3", "group", 32)), None),
        ("FP8", LinearScheme(Scheme("fp8_e4m3", "channel")), None),
        ("NF4", LinearScheme(Scheme("nf4", "group", 64)), None),
        ("TERNARY", LinearScheme(Scheme("ternary", "channel")), None),
        ("BINARY", LinearScheme(Scheme("binary", "channel")), None),
        ("ternary-g256", LinearScheme(Scheme("ternary", "group", 256)), None),
        ("W4A16-g32-head8", LinearScheme(Scheme("int4", "group", 32)), INT8),
        ("W4A16-g64-head4", LinearScheme(Scheme("int4", "group", 64)), LinearScheme(Scheme("int4", "group", 64))),
        ("W8A16-head4", INT8, INT4),
    ],
)
def test_names_of_the_trade(name: str, linear: LinearScheme, head: LinearScheme | None) -> None:
    preset = parse_scheme(name)
    assert (preset.linear, preset.head) == (linear, head)
    assert parse_scheme(preset.name) == preset


def test_fp8_dynamic_has_both_spellings() -> None:
    assert parse_scheme("FP8_DYNAMIC") == parse_scheme("fp8-dynamic")
    assert parse_scheme("FP8_DYNAMIC").linear.input == Scheme("fp8_e4m3", "token", dynamic=True)


@pytest.mark.parametrize(
    "name",
    ["", "W5A16", "W4A16-", "W4A16-g0", "W4A16-g12", "W4A16-gx", "W4A16-g32-g64", "W4A16-g32-channel", "NF4-asym",
     "TERNARY-asym",     "FP8-asym", "W4A16-head8-head4", "W4A16-head16", "W4A16 g32"],
)  # fmt: skip
def test_unknown_names_list_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scheme(name)
    message = str(caught.value)
    assert "W4A16, W3A16" in message
    assert "-head8" in message
    assert "-gN" in message


def test_a_preset_names_head_and_embedding_apart() -> None:
    modules = ["model.embed_tokens", "model.layers.0.q_proj", "lm_head"]
    dense = parse_scheme("W4A16").scheme_map("lm_head", "model.embed_tokens").resolve(modules)
    assert dense == {"model.embed_tokens": None, "model.layers.0.q_proj": INT4, "lm_head": None}
    packed = parse_scheme("W4A16-head8").scheme_map("lm_head", "model.embed_tokens").resolve(modules)
    assert packed == {"model.embed_tokens": INT8, "model.layers.0.q_proj": INT4, "lm_head": INT8}
    tied = parse_scheme("W4A16").scheme_map(None, "model.embed_tokens").resolve(modules[:2])
    assert tied == {"model.embed_tokens": None, "model.layers.0.q_proj": INT4}


def test_rules_in_order_and_every_linear_once() -> None:
    scheme_map = SchemeMap((("a.0.down", None), ("re:a\\.[01]\\.", INT8), ("Linear", INT4)))
    assert scheme_map.resolve(["a.0.down", "a.1.down", "b.0.up"]) == {
        "a.0.down": None,
        "a.1.down": INT8,
        "b.0.up": INT4,
    }
    with pytest.raises(ConfigError, match="matches no linear"):
        scheme_map.resolve(["a.1.down", "b.0.up"])
    with pytest.raises(ConfigError, match="listed twice"):
        scheme_map.resolve(["a.0.down", "a.0.down"])
    with pytest.raises(ConfigError, match=r"no scheme rule matches the linear 'c'.*'a.0.down'"):
        SchemeMap((("a.0.down", None),)).resolve(["a.0.down", "c"])
    with pytest.raises(ConfigError, match="not a regular expression"):
        SchemeMap((("re:(", None),))


def test_classes_can_be_told() -> None:
    scheme_map = SchemeMap((("Embedding", None), ("Linear", INT4)))
    assert scheme_map.resolve({"emb": "Embedding", "up": "Linear"}) == {"emb": None, "up": INT4}


def test_group_sizes_that_fit() -> None:
    assert fitting_groups(896) == (16, 32, 64, 128)
    assert fitting_groups(172) == ()
    assert largest_fitting_group(704, 128) == 64
    assert largest_fitting_group(96, 48) == 48
    assert largest_fitting_group(172, 128) is None


def test_a_group_that_does_not_fit_names_layer_columns_and_sizes() -> None:
    with pytest.raises(ConfigError, match=r"mlp.down: group size 128 does not divide its 704 columns.*16, 32, 64"):
        check_shapes({"mlp.down": INT4}, {"mlp.down": (256, 704)})
    with pytest.raises(ConfigError, match=r"172 columns; no power of two.*-channel"):
        check_shapes({"mlp.down": INT4}, {"mlp.down": (64, 172)})


def test_auto_takes_the_largest_that_fits() -> None:
    schemes = fit_groups({"a": INT4, "b": INT4, "c": None, "d": INT4}, {"a": (8, 256), "b": (8, 704), "d": (8, 172)})
    assert schemes["a"] == INT4
    assert schemes["b"] == LinearScheme(Scheme("int4", "group", 64))
    assert schemes["c"] is None
    assert schemes["d"] == LinearScheme(Scheme("int4", "channel"))
