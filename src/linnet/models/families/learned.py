# SPDX-License-Identifier: Apache-2.0
"""Families of learned positions, layer norms and a feed-forward without a gate."""

from dataclasses import replace

from linnet.models.config import ConfigReader
from linnet.models.parts import alike
from linnet.models.plain_parts import PlainParts, by_inputs
from linnet.models.spec import ArchSpec, PositionTable

SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
"""Of a head that is no language model's."""


def _gpt2_names(positions: int) -> dict[str, object]:
    return {
        "prefix": "transformer.",
        "embedding": "transformer.wte",
        "positions": PositionTable("transformer.wpe", positions),
        "head": "lm_head",
    }


def gpt2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GPT-2: query, key and value in one tensor; linears lie [inputs, outputs]."""
    parts = PlainParts(config, "transformer.h.{layer}", tied=True)
    config.require_off("scale_attn_by_inverse_layer_idx", "add_cross_attention")
    config.ignore(*SUMMARY, "reorder_and_upcast_attn", "n_ctx")
    qkv = parts.split(by_inputs(parts.fused("attn.c_attn")))
    output = by_inputs(parts.linear("attn.c_proj", parts.hidden, parts.hidden))
    attention = parts.attention(parts.block_norm("ln_1"), qkv, output)
    if not config.flag("scale_attn_weights", default=True):
        attention = replace(attention, scale=1.0)
    activation = parts.activation("activation_function", default="gelu_new")
    width = parts.intermediate("n_inner", "intermediate_size")
    mlp = parts.mlp(parts.block_norm("ln_2"), "mlp.c_fc", "mlp.c_proj", width, activation)
    mlp = replace(mlp, up=by_inputs(mlp.up), down=by_inputs(mlp.down))
    longest = parts.longest(1024)
    layers = alike(attention, mlp, (None,) * parts.layers)
    final = parts.norm("transformer.ln_f")
    return parts.spec("GPT2LMHeadModel", layers, longest, final_norm=final, **_gpt2_names(longest))
