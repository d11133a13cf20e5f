# SPDX-License-Identifier: Apache-2.0
"""Families with latent attention: keys and values of all heads are made of one narrow vector of each token.

DeepSeek-AI 2024 (DeepSeek-V2), sections 2.1 and 2.2, and 2024 (DeepSeek-V3), section 2.1.2. Here keys and values are
kept as attention reads them, of every head; see docs/models.md for what that costs.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.models.config import MAXIMUM_LAYERS, ConfigReader
from linnet.models.families.experts import routed
from linnet.models.parts import GatedParts
from linnet.models.spec import (
    ArchSpec,
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    Narrowed,
    Projection,
    RowRanges,
    SharedSpec,
)

NARROW_EPSILON = 1e-6
"""Of the norms of what is narrow, whatever the config says of the others."""
TRAINING = ("aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers", "output_router_logits")


def _of_heads(fused: Projection, heads: int, *parts: tuple[int, int]) -> Projection:
    """Of every head's rows those of ``parts`` (half-open, within the head), in that order."""
    size = fused.tensor_rows // heads
    rows: RowRanges = tuple((head * size + start, head * size + stop) for head in range(heads) for start, stop in parts)
    return replace(fused, rows=rows)


def _attention(parts: GatedParts, turning: int) -> AttentionSpec:
    """``turning``: elements of a key that all heads share and that turn."""
    config, heads = parts.config, parts.heads
    config.require("num_key_value_heads", heads)
    still = config.size("qk_nope_head_dim", default=128)
    value = config.size("v_head_dim", default=128)
    latent, size = config.size("kv_lora_rank", default=512), turning + still
    config.require("qk_head_dim", size)
    bias = config.flag("attention_bias")
    both = parts.projection("self_attn.kv_a_proj_with_mqa", latent + turning, parts.hidden, bias)
    if config.flag("_keys_and_values_apart"):
        key = parts.projection("self_attn.k_b_proj", heads * still, latent)
        values = parts.projection("self_attn.v_b_proj", heads * value, latent)
    else:
        keys = parts.projection("self_attn.kv_b_proj", heads * (still + value), latent)
        key, values = _of_heads(keys, heads, (0, still)), _of_heads(keys, heads, (still, still + value))
    rank, narrow = config.optional_size("q_lora_rank"), None
    queries = parts.projection("self_attn.q_proj", heads * size, parts.hidden)
    if rank is not None:
        down = parts.projection("self_attn.q_a_proj", rank, parts.hidden, bias)
        narrow = Narrowed(down, replace(parts.block_norm("self_attn.q_a_layernorm"), epsilon=NARROW_EPSILON))
        queries = parts.projection("self_attn.q_b_proj", heads * size, rank)
    norm = replace(parts.block_norm("self_attn.kv_a_layernorm"), epsilon=NARROW_EPSILON)
    return replace(
        parts.attention(),
        query=_of_heads(queries, heads, (still, size), (0, still)),
        key=key,
        value=values,
        output=parts.projection("self_attn.o_proj", parts.hidden, heads * value, bias),
        kv_heads=heads,
        head_size=size,
        value_head_size=value,
        scale=size**-0.5 * _warmth(config),
        rope=replace(parts.rope, style="interleaved"),
        query_narrow=narrow,
        kv_narrow=Narrowed(replace(both, rows=((0, latent),)), norm),
        shared_key=replace(both, rows=((latent, latent + turning),)),
    )


def _warmth(config: ConfigReader) -> float:
    """What YaRN multiplies scores by, as these families have it: the square of its factor for ``mscale_all_dim``."""
    name, scaling = config.find(("rope_parameters", "rope_scaling"))
    if not isinstance(scaling, Mapping):
        return 1.0
    reader = config.within(name, scaling)
    multiplier, factor = reader.optional_number("mscale_all_dim"), reader.optional_number("factor")
    if multiplier is None or factor is None or factor <= 1:
        return 1.0
    return (0.1 * multiplier * math.log(factor) + 1.0) ** 2


def _parts(config: ConfigReader, max_context: int | None) -> tuple[GatedParts, AttentionSpec, ExpertsSpec]:
    turning = config.size("qk_rope_head_dim", default=64)
    config.require("head_dim", turning)
    parts = GatedParts(config, max_context, head_size=turning, max_positions=2048)
    config.ignore(*TRAINING)
    config.require("moe_layer_freq", 1)
    width, count = config.size("moe_intermediate_size"), config.size("n_shared_experts")
    common = parts.shared_expert("mlp.shared_experts", count * width)
    experts = replace(
        routed(parts, width, normalise=False, chosen=8),
        factor=config.number("routed_scaling_factor", default=1.0),
        shared=SharedSpec(common, None),
    )
    return parts, _attention(parts, turning), experts


def _grouped(config: ConfigReader, experts: ExpertsSpec) -> ExpertsSpec:
    """With the groups of experts that the config names."""
    groups, chosen = config.size("n_group", default=1), config.size("topk_group", default=1)
    if experts.experts % groups or chosen > groups or experts.experts // groups * chosen < experts.chosen:
        raise CheckpointError(
            f"{config.where}: {chosen} of n_group {groups} of {experts.experts} experts do not hold {experts.chosen}"
        )
    return replace(experts, groups=groups, groups_chosen=chosen)


def _spec(family: str, parts: GatedParts, attention: AttentionSpec, experts: ExpertsSpec) -> ArchSpec:
    """The first layers are dense, and wider."""
    config = parts.config
    _, found = config.find(("first_k_dense_replace",))
    dense = config.size("first_k_dense_replace", maximum=MAXIMUM_LAYERS) if found else 0
    mlp = parts.mlp(config.flag("mlp_bias"))
    first, others = LayerSpec(attention, mlp), LayerSpec(attention, experts)
    return parts.spec(family, tuple(first if layer < dense else others for layer in range(parts.layers)))


def deepseek_v2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """DeepSeek-V2 and V2-Lite: experts by their softmax, those of the best groups alone where there are any."""
    parts, attention, experts = _parts(config, max_context)
    config.require("scoring_func", "softmax")
    config.require_off("norm_topk_prob")
    by_groups = config.choice("topk_method", accepted={"greedy": False, "group_limited_greedy": True}, default="greedy")
    config.ignore("n_group", "topk_group")
    return _spec("DeepseekV2ForCausalLM", parts, attention, _grouped(config, experts) if by_groups else experts)


def deepseek_v3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """DeepSeek-V3 and R1: the sigmoid of each score; a correction that was learned decides the choice alone, and a
    group ranks by its two best."""
    parts, attention, experts = _parts(config, max_context)
    config.require("scoring_func", "sigmoid")
    config.require("topk_method", "noaux_tc")
    for key in ("n_group", "topk_group", "routed_scaling_factor"):
        config.number(key)  # transformers' own defaults are those of one model
    grouped = _grouped(config, experts)
    experts = replace(
        grouped,
        scoring="sigmoid",
        normalise=config.flag("norm_topk_prob", default=True),
        group_best=2 if grouped.groups > 1 else 1,
        correction="model.layers.{layer}.mlp.gate.e_score_correction_bias",
    )
    config.require("rope_interleave", True)
    return _spec("DeepseekV3ForCausalLM", parts, attention, experts)
