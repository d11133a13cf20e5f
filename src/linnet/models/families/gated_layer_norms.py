# SPDX-License-Identifier: Apache-2.0
"""Families of gated feed-forwards and layer norms."""

from dataclasses import replace
from typing import Any

from linnet.errors import CheckpointError
from linnet.formats.joined import Joined
from linnet.models.config import ConfigReader
from linnet.models.parts import alike, read_windows
from linnet.models.plain_parts import MODEL, PlainParts
from linnet.models.rope import Positions, read_rope
from linnet.models.spec import ArchSpec, AttentionSpec, LayerSpec, MlpSpec


def _mlp(parts: PlainParts, mlp: MlpSpec) -> MlpSpec:
    """With a gate beside ``up_proj``, all without biases."""
    gate = parts.linear("mlp.gate_proj", mlp.up.outputs, parts.hidden, bias=False)
    return replace(mlp, gate=gate, up=replace(mlp.up, bias=False), down=replace(mlp.down, bias=False))


def _with_head_norms(parts: PlainParts, attention: AttentionSpec, name: str) -> AttentionSpec:
    """The same with queries and keys normalised before the rope, every head with gains of its own."""
    query, key = (replace(parts.block_norm(f"self_attn.{letter}_{name}"), bias=False, by_run=True) for letter in "qk")
    return replace(attention, query_norm=query, key_norm=key)


def stablelm(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """StableLM 3B, 2 1.6B and 2 12B: a quarter of each head turns; perhaps biases on query, key and value, perhaps
    norms of every head with gains of its own."""
    parts = PlainParts(config, "model.layers.{layer}", tied=False, biases=False)
    parts.read_kv_heads()
    longest, fraction = parts.longest(4096), ("partial_rotary_factor", "rope_pct")
    reach = read_rope(config, parts.head_size, longest, max_context, fraction_names=fraction, default_fraction=0.25)
    qkv = parts.apart("self_attn.*_proj", bias=config.flag("use_qkv_bias"))
    output = parts.linear("self_attn.o_proj", parts.hidden, parts.queries)
    norm, parallel = parts.block_norm("input_layernorm"), config.flag("use_parallel_residual")
    second = norm if parallel else parts.block_norm("post_attention_layernorm")
    width, activation = parts.intermediate("intermediate_size"), parts.activation("hidden_act", default="silu")
    mlp = _mlp(parts, parts.mlp(second, "mlp.up_proj", "mlp.down_proj", width, activation))
    attention = parts.attention(norm, qkv, output, reach.rope)
    if config.flag("qk_layernorm"):
        attention = _with_head_norms(parts, attention, "layernorm")
    layers = alike(attention, mlp, (None,) * parts.layers, parallel)
    spec = parts.spec("StableLmForCausalLM", layers, reach, **MODEL, final_norm=parts.norm("model.norm"))
    norms = [f"{parts.block}.self_attn.{letter}_layernorm" for letter in "qk"]
    return replace(spec, arranged=tuple(Joined(f"{norm}.norms.{{part}}.weight", f"{norm}.weight") for norm in norms))


def _cohere_halves(
    config: ConfigReader, max_context: int | None
) -> tuple[PlainParts, Positions, AttentionSpec, MlpSpec]:
    """One norm without a bias in front of both halves; neighbouring elements turn; logits are scaled."""
    parts = PlainParts(config, "model.layers.{layer}", tied=True, biases=False, norm_biases=False)
    parts.read_kv_heads()
    bias = config.flag("attention_bias")
    reach = read_rope(config, parts.head_size, parts.longest(8192), max_context, default_theta=5e5)
    qkv = parts.apart("self_attn.*_proj", bias=bias)
    output = parts.linear("self_attn.o_proj", parts.hidden, parts.queries, bias=bias)
    norm = parts.block_norm("input_layernorm")
    rope = replace(reach.rope, style="interleaved")
    width, activation = parts.intermediate("intermediate_size"), parts.activation("hidden_act", default="silu")
    mlp = _mlp(parts, parts.mlp(norm, "mlp.up_proj", "mlp.down_proj", width, activation))
    return parts, reach, parts.attention(norm, qkv, output, rope), mlp


def _cohere_ends(parts: PlainParts) -> dict[str, Any]:
    """What comes before and behind the blocks."""
    multiplier = parts.config.number("logit_scale", default=0.0625)
    return {**MODEL, "final_norm": parts.norm("model.norm"), "logits_multiplier": multiplier}


def cohere(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Command-R and R+; the latter normalises every head, with gains of its own."""
    parts, reach, attention, mlp = _cohere_halves(config, max_context)
    if config.flag("use_qk_norm"):
        attention = _with_head_norms(parts, attention, "norm")
    layers = alike(attention, mlp, (None,) * parts.layers, parallel_residual=True)
    return parts.spec("CohereForCausalLM", layers, reach, **_cohere_ends(parts))


def cohere2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Command-R7B and Command A: three sliding layers with a rope, then one that sees everything and has none."""
    parts, reach, attention, mlp = _cohere_halves(config, max_context)
    for name, accepted in (
        ("head_dim", parts.head_size),
        ("rotary_pct", 1.0),
        ("position_embedding_type", "rope_gptj"),
    ):
        config.require(name, accepted)
    for name in ("use_embedding_sharing", "use_gated_activation", "use_parallel_block"):
        config.require(name, True)
    config.ignore("layer_switch", "order_of_interleaved_layers")
    config.require_off("use_parallel_embedding", "use_qk_norm")
    window, pattern = config.optional_size("sliding_window"), config.size("sliding_window_pattern", default=4)
    if window is None:
        raise CheckpointError(f"{config.where}: sliding_window is missing; accepted is a whole number from 1")
    windows = read_windows(config, parts.layers, window, lambda layer: (layer + 1) % pattern > 0)
    kinds = {
        None: LayerSpec(replace(attention, rope=None), mlp, parallel_residual=True),
        window: LayerSpec(replace(attention, window=window), mlp, parallel_residual=True),
    }
    return parts.spec("Cohere2ForCausalLM", tuple(kinds[window] for window in windows), reach, **_cohere_ends(parts))
