# SPDX-License-Identifier: Apache-2.0
"""Configs become specs: published ones as published, hostile ones into one sentence, unknown fields by name."""

import math
import random
from typing import Any

import numpy as np
import pytest
from published_configs import (
    BAICHUAN_13B,
    BLOOM_560M,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    GEMMA_2_2B,
    GEMMA_3_4B,
    GEMMA_3_270M,
    LLAMA_3_2_1B,
    MISTRAL_7B,
    PHI_3_MINI_4K,
    PHI_3_MINI_128K,
    PUBLISHED,
    PYTHIA_70M,
    QWEN_2_5_HALF_B,
)

from linnet.errors import CheckpointError, ConfigError, LinnetError, UnsupportedError
from linnet.models import arch_spec, supported_architectures
from linnet.models.build import build_program
from linnet.models.inventory import list_linears, required_tensors
from linnet.models.parts import alibi_slopes
from linnet.models.prefixes import with_prefix
from linnet.models.spec import ArchSpec
from linnet.program.check import check
from linnet.program.traverse import tapped


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_models_have_their_published_size(config: dict[str, Any], parameters: int) -> None:
    spec = arch_spec(config)
    assert sum(math.prod(shape) for shape in required_tensors(spec).values()) == parameters


@pytest.mark.parametrize("config", [config for config, _ in PUBLISHED.values()], ids=PUBLISHED)
def test_published_models_build_a_program_that_keeps_the_contract(config: dict[str, Any]) -> None:
    spec = arch_spec(config)
    program = build_program(spec, lambda name: "bf16")
    check(program)
    tensors = required_tensors(spec)
    assert {weight.ref.checkpoint_name for weight in program.weights} == tensors.keys()
    linears = list_linears(spec, program)
    assert len({linear.module for linear in linears}) == len(linears)
    assert [linear.kind for linear in linears].count("head") == (spec.head is not None)
    assert all((program.segments[linear.segment].kind == "head") == (linear.kind == "head") for linear in linears)
    taps = {value.name for value in program.values}
    assert all(tapped(linear.tap) in taps for linear in linears)
    pieces: dict[str, list[tuple[int, int]]] = {}
    for weight in program.weights:
        pieces.setdefault(weight.ref.checkpoint_name, []).extend(weight.ref.rows or ((0, weight.shape[0]),))
    for linear in linears:  # every row of a fused tensor is used exactly once
        ends = [end for piece in sorted(pieces[linear.tensor]) for end in piece]
        assert ends[0] == 0
        assert ends[-1] == linear.shape[0]
        assert ends[1:-1:2] == ends[2:-1:2]


def test_old_and_new_spelling_mean_the_same() -> None:
    new = {
        name: value for name, value in LLAMA_3_2_1B.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    new |= {"rope_parameters": LLAMA_3_2_1B["rope_scaling"] | {"rope_theta": 500000.0}, "dtype": "bfloat16"}
    assert arch_spec(new) == arch_spec(LLAMA_3_2_1B)
    pythia = {name: value for name, value in PYTHIA_70M.items() if not name.startswith("rotary")}
    pythia["rope_parameters"] = {"rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_type": "default"}
    assert arch_spec(pythia) == arch_spec(PYTHIA_70M)
    bloom = {name: value for name, value in BLOOM_560M.items() if name not in ("n_embed", "num_attention_heads")}
    assert arch_spec(bloom | {"hidden_size": 1024, "n_head": 16}) == arch_spec(BLOOM_560M)


def windows(spec: ArchSpec) -> tuple[int | None, ...]:
    return tuple(layer.mixer.window for layer in spec.layers)


def test_windows() -> None:
    assert set(windows(arch_spec(MISTRAL_7B))) == {4096}
    assert set(windows(arch_spec(MISTRAL_7B | {"sliding_window": None}))) == {None}
    silent = {name: value for name, value in MISTRAL_7B.items() if name != "sliding_window"}
    assert set(windows(arch_spec(silent))) == {4096}, "transformers' default, not none"
    no_width = QWEN_2_5_HALF_B | {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}
    assert set(windows(arch_spec(no_width))) == {None}
    assert windows(arch_spec(GEMMA_3_270M)) == (*(512,) * 5, None) * 3
    by_rule = {name: value for name, value in GEMMA_3_270M.items() if name != "layer_types"}
    assert arch_spec(by_rule) == arch_spec(GEMMA_3_270M)
    assert windows(arch_spec(by_rule | {"sliding_window_pattern": 2})) == (512, None) * 9
    assert windows(arch_spec(GEMMA_2_2B))[:4] == (4096, None, 4096, None)
    assert set(windows(arch_spec(QWEN_2_5_HALF_B))) == {None}, "use_sliding_window is off"
    sliding = arch_spec(QWEN_2_5_HALF_B | {"use_sliding_window": True})
    assert windows(sliding) == (None,) * 21 + (32768,) * 3
    kinds = ["full_attention", "sliding_attention"] * 12
    listed = arch_spec(QWEN_2_5_HALF_B | {"use_sliding_window": True, "layer_types": kinds})
    assert windows(listed) == (None, 32768) * 12


def test_layers_of_their_own_rope() -> None:
    sliding, full = arch_spec(GEMMA_3_4B).layers[4].mixer, arch_spec(GEMMA_3_4B).layers[5].mixer
    assert (sliding.window, full.window) == (1024, None)
    assert sliding.rope is not None
    assert full.rope is not None
    assert sliding.rope.inverse_frequencies[1] == np.float32(1) / np.float32(1e4 ** (2 / 256))
    assert full.rope.inverse_frequencies[:1] == (0.125,), "eight times as slow"
    assert len({id(layer) for layer in arch_spec(GEMMA_3_4B).layers}) == 2, "layers that are alike are one object"


def test_phi_3_rows_of_fused_tensors() -> None:
    spec = arch_spec(PHI_3_MINI_4K | {"num_key_value_heads": 8})
    attention = spec.layers[0].mixer
    assert attention.query.tensor_rows == attention.key.tensor_rows == 32 * 96 + 2 * 8 * 96
    assert attention.query.rows == ((0, 3072),)
    assert attention.key.rows == ((3072, 3840),)
    assert attention.value.rows == ((3840, 4608),)
    assert spec.layers[0].feed_forward.gate is not None
    assert (spec.layers[0].feed_forward.gate.rows, spec.layers[0].feed_forward.up.rows) == (
        ((0, 8192),),
        ((8192, 16384),),
    )


def test_interleaved_rows() -> None:
    attention = arch_spec(PYTHIA_70M).layers[0].mixer
    assert attention.query.rows is not None
    assert attention.query.rows[:2] == ((0, 64), (192, 256))
    assert attention.key.rows is not None
    assert attention.key.rows[:2] == ((64, 128), (256, 320))
    assert attention.value.rows is not None
    assert attention.value.rows[-1] == (7 * 192 + 128, 8 * 192)
    assert attention.rope is not None
    assert attention.rope.rotary_size == 16


def test_long_rope_has_two_tables_and_says_where_the_first_ends() -> None:
    short, at_limit = arch_spec(PHI_3_MINI_128K), arch_spec(PHI_3_MINI_128K, 4096)
    long = arch_spec(PHI_3_MINI_128K, 4097)
    assert short == at_limit
    assert (short.max_positions, long.max_positions) == (4096, 131072)
    assert short.longest_positions == long.longest_positions == 131072
    assert short.layers[0].mixer.rope is not None
    assert long.layers[0].mixer.rope is not None
    assert short.layers[0].mixer.rope.inverse_frequencies[0] == long.layers[0].mixer.rope.inverse_frequencies[0]
    assert short.layers[0].mixer.rope.inverse_frequencies[-1] > 10 * long.layers[0].mixer.rope.inverse_frequencies[-1]
    expected = math.sqrt(1 + math.log(32) / math.log(4096))
    assert short.layers[0].mixer.rope.attention_factor == long.layers[0].mixer.rope.attention_factor == expected
    with pytest.raises(ConfigError, match="131072"):
        arch_spec(PHI_3_MINI_128K, 131073)


def test_alibi_slopes_of_eight_heads_are_powers_of_a_half() -> None:
    assert alibi_slopes(8) == tuple(2.0**-n for n in range(1, 9))
    six = alibi_slopes(6)
    assert six[:4] == tuple(2.0 ** (-2 * n) for n in range(1, 5))
    assert np.allclose(six[4:], [2.0**-1, 2.0**-3])


def test_an_unsupported_architecture_lists_the_supported_ones() -> None:
    for config in ({"architectures": ["JambaForCausalLM"]}, {"model_type": "jamba"}, {}, {"architectures": 3}):
        with pytest.raises(UnsupportedError) as caught:
            arch_spec(config)
        assert all(name in str(caught.value) for name in supported_architectures())


def test_model_type_stands_in_for_a_missing_architecture() -> None:
    config = {name: value for name, value in LLAMA_3_2_1B.items() if name != "architectures"}
    assert arch_spec(config) == arch_spec(LLAMA_3_2_1B)


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (LLAMA_3_2_1B, {"residual_multiplier": 0.22}, "residual_multiplier"),
        (LLAMA_3_2_1B, {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        (LLAMA_3_2_1B, {"num_local_experts": 8}, "num_local_experts"),
        (LLAMA_3_2_1B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA_3_2_1B, {"hidden_act": "quick_gelu"}, "quick_gelu"),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
        (LLAMA_3_2_1B, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer type"),
        (QWEN_2_5_HALF_B, {"layer_types": ["linear_attention"] * 24}, "linear_attention"),
        (QWEN_2_5_HALF_B, {"use_mrope": True}, "use_mrope"),
        (GEMMA_3_270M, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA_3_270M, {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters"),
        (GEMMA_2_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (PHI_3_MINI_4K, {"attention_bias": True}, "attention_bias"),
        (BLOOM_560M, {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        (BLOOM_560M, {"n_inner": 2048}, "n_inner"),
        (DEEPSEEK_V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob"),
        (DEEPSEEK_V2_LITE, {"topk_method": "noaux_tc"}, "noaux_tc"),
        (DEEPSEEK_V2_LITE, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK_V2_LITE, {"num_key_value_heads": 4}, "num_key_value_heads"),
        (BAICHUAN_13B, {"vocab_size": 125696}, "125696"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(
    base: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        arch_spec(base | change)


@pytest.mark.parametrize("missing", ["n_group", "topk_group", "routed_scaling_factor"])
def test_what_no_default_is_known_for_has_to_be_there(missing: str) -> None:
    with pytest.raises(CheckpointError, match=missing):
        arch_spec({key: value for key, value in DEEPSEEK_V3.items() if key != missing})


def test_harmless_fields_of_the_wild() -> None:
    wild = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "unsloth_version": "2024.9",
        "_attn_implementation_autoset": True,
        "attention_probs_dropout_prob": 0.1,
        "num_experts": 0,
        "quantization_config": {"quant_method": "compressed-tensors"},
    }
    assert arch_spec(LLAMA_3_2_1B | wild) == arch_spec(LLAMA_3_2_1B)


LEFT_BY_A_CONVERTER = {
    "max_window_layers": 28,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "layer_types": ["full_attention"] * 16,
    "partial_rotary_factor": 1.0,
    "residual_multiplier": 1.0,
}


def test_neutral_values_of_another_family() -> None:
    """Keys that a converter left, with values that change nothing (K13)."""
    assert arch_spec(LLAMA_3_2_1B | LEFT_BY_A_CONVERTER) == arch_spec(LLAMA_3_2_1B)
    assert arch_spec(LLAMA_3_2_1B | {"max_window_layers": 28}) == arch_spec(LLAMA_3_2_1B)


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"sliding_window": 4096},
        {"sliding_window": 4096, "use_sliding_window": None},
        {"layer_types": ["full_attention"] * 15 + ["sliding_attention"]},
        {"layer_types": "full_attention"},
        {"partial_rotary_factor": 0.5},
        {"residual_multiplier": 0.22},
        {"max_window_layers": 4, "use_sliding_window": True},
    ],
    ids=str,
)
def test_values_of_another_family_that_say_something(change: dict[str, Any]) -> None:
    """They would change numbers, so they are refused (K13)."""
    with pytest.raises(UnsupportedError, match=next(iter(change))):
        arch_spec(LLAMA_3_2_1B | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": "16"}, "num_hidden_layers"),
        ({"num_hidden_layers": 16.0}, "num_hidden_layers"),
        ({"hidden_size": 10**18}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"head_dim": None, "num_attention_heads": 24}, "num_attention_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 63}, "pairs"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters and rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "short_factor"),
        ({"rope_scaling": LLAMA_3_2_1B["rope_scaling"] | {"low_freq_factor": 4.0}}, "low_freq_factor"),
    ],
)
def test_values_that_cannot_be_true_are_one_sentence(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        arch_spec(LLAMA_3_2_1B | change)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_field_survives_nonsense(name: str) -> None:
    """Whatever stands in a field: a spec or a LinnetError, never another exception, and never a huge program."""
    config, _ = PUBLISHED[name]
    for field in config:
        for nonsense in (None, -1, 0, 1, 10**30, 1.5, float("nan"), "x", "", [], [1], {}, {"a": 1}, True, [None] * 48):
            try:
                spec = arch_spec(config | {field: nonsense})
            except LinnetError:
                continue
            assert len(spec.layers) <= 4096


ROPE_RULES = ("default", "linear", "llama3", "yarn", "longrope", "su", "dynamic")
ROPE_FIELDS = (
    "factor", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate",
    "short_factor", "long_factor",
)  # fmt: skip
NONSENSE = (None, -1, 0, 1, 2, 1e-300, 1e14, 10**30, 0.25, float("nan"), "x", [], [1.0] * 48, [1e-300] * 48, {}, True)


@pytest.mark.parametrize("seed", range(300))
def test_any_rope_is_finite_or_refused(seed: int) -> None:
    generator = random.Random(seed)
    chosen = generator.sample(ROPE_FIELDS, generator.randrange(len(ROPE_FIELDS)))
    rope = {"rope_type": generator.choice(ROPE_RULES)} | {name: generator.choice(NONSENSE) for name in chosen}
    base = generator.choice((LLAMA_3_2_1B, PHI_3_MINI_4K, PYTHIA_70M))
    try:
        spec = arch_spec(
            {name: value for name, value in base.items() if "rope" not in name} | {"rope_parameters": rope}
        )
    except LinnetError:
        return
    assert spec.layers[0].mixer.rope is not None
    assert all(
        map(math.isfinite, (*spec.layers[0].mixer.rope.inverse_frequencies, spec.layers[0].mixer.rope.attention_factor))
    )


def test_bare_names_lose_the_prefix_everywhere() -> None:
    spec = with_prefix(arch_spec(BLOOM_560M), "")
    assert not any(name.startswith("transformer.") for name in required_tensors(spec))
    assert "h.0.self_attention.query_key_value.weight" in required_tensors(spec)
