# SPDX-License-Identifier: Apache-2.0
"""The policy is visible in the program: which op stands in front of which weight."""

from dataclasses import replace
from typing import Any

import pytest
from small_programs import CONFIGS, W4_G128, W8, W8A8, program

from linnet.errors import ConfigError, UnsupportedError
from linnet.program.attributes import Attention
from linnet.program.check import check
from linnet.program.choose_numerics import KV_CACHES, choose_numerics, numerics_name, quantised_kv
from linnet.program.program import Program
from linnet.program.serialise import from_json, to_json
from linnet.schemes.scheme import LinearScheme, Scheme


def inputs_of_linears(program: Program) -> dict[str, Any]:
    dtypes = {value.name: value.dtype for value in program.values}
    return {op.name: dtypes[op.inputs[0]] for op in program.ops if op.kind in ("linear", "logits")}


def int8_groups(size: int) -> Scheme:
    return Scheme("int8", "group", group_size=size, dynamic=True, scale_dtype="fp32")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("fp32", "fp32"),
        ("bf16", "bf16"),
        ("fp16", "bf16"),
        (W4_G128, int8_groups(128)),
        (LinearScheme(Scheme("int2", "group", group_size=32)), int8_groups(32)),
        (LinearScheme(Scheme("int3", "tensor")), int8_groups(128)),
        (LinearScheme(Scheme("ternary", "group", group_size=256)), int8_groups(256)),
        (LinearScheme(Scheme("int8", "block", block=(128, 64))), int8_groups(64)),
        (W8, int8_groups(128)),
        (LinearScheme(Scheme("fp8_e4m3", "channel")), "bf16"),
        (LinearScheme(Scheme("fp8_e4m3", "block", block=(128, 128))), "fp32"),
        (LinearScheme(Scheme("nf4", "group", group_size=64)), "bf16"),
    ],
)
def test_fast(stored: Any, expected: Any) -> None:
    chosen = choose_numerics(program("gated", stored), "fast")
    found = inputs_of_linears(chosen)
    assert found.pop("logits") == "bf16"
    assert set(found.values()) == {expected}
    assert {state.dtype for state in chosen.states} == {"bf16"}


@pytest.mark.parametrize("stored", ["fp32", "bf16", W4_G128, W8])
def test_exact_inserts_nothing(stored: Any) -> None:
    built = program("gated", stored)
    assert choose_numerics(built, "exact") == built
    assert {state.dtype for state in built.states} == {"fp32"}


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_prescribed_activations_are_executed_as_prescribed(policy: Any) -> None:
    found = inputs_of_linears(choose_numerics(program("gated", W8A8), policy))
    found.pop("logits")
    assert set(found.values()) == {Scheme("int8", "token", dynamic=True, scale_dtype="fp32")}


@pytest.mark.parametrize(
    "prescribed",
    [
        Scheme("int8", "token"),
        Scheme("int4", "token", symmetric=False, dynamic=True),
        Scheme("int2", "token", dynamic=True),
        Scheme("fp8_e4m3", "group", group_size=128),
    ],
)
def test_activations_nobody_can_execute_are_refused_by_name(prescribed: Scheme) -> None:
    stored = LinearScheme(Scheme("int8", "channel"), prescribed)
    with pytest.raises(UnsupportedError, match=r"q_proj.*supported"):
        choose_numerics(program("gated", stored), "fast")


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize(
    ("prescribed", "computed"),
    [
        (Scheme("fp8_e4m3", "token", dynamic=True), Scheme("fp8_e4m3", "token", dynamic=True, scale_dtype="fp32")),
        # a scale of all rows of a step would make an answer depend on its neighbours
        (Scheme("fp8_e4m3", "tensor", dynamic=True), Scheme("fp8_e4m3", "token", dynamic=True, scale_dtype="fp32")),
        (
            Scheme("int8", "token", dynamic=True, symmetric=False),
            Scheme("int8", "token", dynamic=True, symmetric=False, scale_dtype="fp32"),
        ),
    ],
)
def test_dynamic_activations_of_every_kind(policy: Any, prescribed: Scheme, computed: Scheme) -> None:
    stored = LinearScheme(Scheme("fp8_e4m3", "channel"), prescribed)
    chosen = choose_numerics(program("gated", stored), policy)
    check(chosen)
    found = inputs_of_linears(chosen)
    found.pop("logits")
    assert set(found.values()) == {computed}


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_activation_has_the_scale_of_its_own_linear(symmetric: bool) -> None:
    prescribed = Scheme("int8", "tensor", symmetric=symmetric)
    chosen = choose_numerics(program("gated", LinearScheme(Scheme("int8", "channel"), prescribed)), "fast")
    check(chosen)
    assert from_json(to_json(chosen)) == chosen
    leaves = ["input_scale"] if symmetric else ["input_scale", "input_zero_point"]
    refs = {weight.name: weight.ref.checkpoint_name for weight in chosen.weights}
    rounded = {op.outputs[0]: op for op in chosen.ops if op.kind == "quantise"}
    for op in chosen.ops:
        if op.kind == "linear":
            module = refs[op.weights[0]].removesuffix(".weight")
            assert [refs[name] for name in rounded[op.inputs[0]].weights] == [f"{module}.{leaf}" for leaf in leaves]


@pytest.mark.parametrize("name", CONFIGS)
def test_linears_that_read_one_value_share_one_rounding(name: str) -> None:
    built = program(name)
    chosen = choose_numerics(built, "fast")
    added = [op for op in chosen.ops if op.kind in ("cast", "quantise")]
    read = {op.inputs[0] for op in built.ops if op.kind in ("linear", "experts", "logits")}
    assert sorted(op.inputs[0] for op in added) == sorted(read)


def test_one_value_may_be_rounded_in_two_ways() -> None:
    from published_configs import LLAMA_2_7B

    from linnet.models import arch_spec
    from linnet.models.build import build_program

    spec = arch_spec(LLAMA_2_7B | {"num_hidden_layers": 1, "vocab_size": 64})
    built = build_program(spec, lambda name: W4_G128 if "q_proj" in name else W8A8 if "k_proj" in name else "bf16")
    names = {op.name for op in choose_numerics(built, "fast").ops if op.inputs == ("layers.0.attention.norm",)}
    assert names == {f"layers.0.attention.norm.{kind}" for kind in ("int8_g128", "int8_token", "bf16")}


def test_taps_keep_their_names() -> None:
    built = program("gated", W4_G128)
    chosen = {value.name: value for value in choose_numerics(built, "fast").values}
    assert all(chosen[value.name] == value for value in built.values)


def test_misuse() -> None:
    with pytest.raises(ConfigError, match=r"fastest.*exact, fast"):
        choose_numerics(program(), "fastest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="once"):
        choose_numerics(choose_numerics(program(), "fast"), "fast")


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_the_kv_cache_is_chosen_apart_from_the_policy(policy: Any, kv_cache: Any) -> None:
    """Only ``fast`` rounds attention's operands, and only where what is stored is exact in bf16."""
    chosen = choose_numerics(program("gated"), policy, kv_cache)
    check(chosen)
    element = {"auto": "fp32" if policy == "exact" else "bf16", "fp8": "fp8_e4m3"}.get(kv_cache, kv_cache)
    stored: Any = element
    if element not in ("fp32", "bf16"):
        stored = Scheme(element, "head", dynamic=True, scale_dtype="fp32")
    assert {state.dtype for state in chosen.states} == {stored}
    arithmetic = {op.attributes.arithmetic for op in chosen.ops if isinstance(op.attributes, Attention)}
    assert arithmetic == {"bf16" if policy == "fast" and stored != "fp32" else "fp32"}
    own = stored == ("fp32" if policy == "exact" else "bf16")
    assert numerics_name(chosen, policy) == (policy if own else f"{policy}-kv_{element}")


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_a_prescribed_kv_cache_holds_unless_another_is_chosen(policy: Any) -> None:
    built = program("gated")
    states = tuple(replace(state, dtype=quantised_kv("int8")) for state in built.states)
    prescribed = replace(built, states=states)
    assert choose_numerics(prescribed, policy) == choose_numerics(built, policy, "int8")
    assert choose_numerics(prescribed, policy, "bf16") == choose_numerics(built, policy, "bf16")
    assert numerics_name(choose_numerics(prescribed, policy), policy) == f"{policy}-kv_int8"


def test_an_unknown_kv_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache is 'int5'; accepted: auto, fp32, bf16, int8, fp8, int4"):
        choose_numerics(program(), "fast", "int5")  # type: ignore[arg-type]


def test_quantised_states_count_their_scales() -> None:
    def size(kv_cache: Any) -> int:
        (state, *_) = choose_numerics(program("gated"), "fast", kv_cache).states
        return state.bytes_per_token - (8 * state.kv_heads if kv_cache in ("int8", "fp8", "int4") else 0)

    sizes = {kv_cache: size(kv_cache) for kv_cache in KV_CACHES}
    assert sizes["auto"] == sizes["bf16"] == sizes["fp32"] // 2
    assert sizes["int8"] == sizes["fp8"] == sizes["bf16"] // 2
    assert sizes["int4"] == sizes["int8"] // 2
