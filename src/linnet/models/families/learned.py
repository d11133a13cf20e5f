# SPDX-License-Identifier: Apache-2.0
"""Families of learned positions, layer norms and a feed-forward without a gate."""

from dataclasses import replace

from linnet.errors import UnsupportedError
from linnet.models.config import ConfigReader
from linnet.models.parts import alike, in_groups
from linnet.models.plain_parts import RUNTIME, SUMMARY, PlainParts, by_inputs
from linnet.models.spec import ArchSpec, Narrow, PositionTable

NARROW = ("model.decoder.project_in", "model.decoder.project_out")


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


def gpt_bigcode(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key head for all queries, or one each in groups of three."""
    parts = PlainParts(config, "transformer.h.{layer}", tied=True)
    config.require_off("add_cross_attention")
    config.ignore(*SUMMARY, *RUNTIME)
    shared = config.flag("multi_query", default=True)
    parts.kv_heads = 1 if shared else parts.heads
    config.ignore("num_key_value_heads")
    fused = parts.fused("attn.c_attn")
    qkv = parts.split(fused) if shared else in_groups(fused, parts.heads, 1, parts.head_size)
    output = parts.linear("attn.c_proj", parts.hidden, parts.hidden)
    attention = parts.attention(parts.block_norm("ln_1"), qkv, output)
    if not config.flag("scale_attn_weights", default=True):
        attention = replace(attention, scale=1.0)
    activation = parts.activation("activation_function", default="gelu_pytorch_tanh")
    mlp = parts.mlp(parts.block_norm("ln_2"), "mlp.c_fc", "mlp.c_proj", parts.intermediate("n_inner"), activation)
    longest = parts.longest(1024)
    layers = alike(attention, mlp, (None,) * parts.layers)
    final = parts.norm("transformer.ln_f")
    return parts.spec("GPTBigCodeForCausalLM", layers, longest, final_norm=final, **_gpt2_names(longest))


def opt(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """OPT: two rows of the table of positions come before the first; 350M has its norms behind the sums, none at the
    end, and embeddings narrower than its blocks."""
    parts = PlainParts(
        config, "model.decoder.layers.{layer}", tied=True, biases=config.flag("enable_bias", default=True)
    )
    config.ignore("dropout", "layerdrop", "init_std", "layer_norm_epsilon")
    if not config.flag("layer_norm_elementwise_affine", default=True):
        raise UnsupportedError(f"{config.where}: layer_norm_elementwise_affine is false; supported is true")
    first, second = parts.block_norm("self_attn_layer_norm"), parts.block_norm("final_layer_norm")
    output = parts.linear("self_attn.out_proj", parts.hidden, parts.hidden)
    attention = parts.attention(first, parts.apart("self_attn.*_proj"), output)
    activation = parts.activation("activation_function", default="relu")
    mlp = parts.mlp(second, "fc1", "fc2", parts.intermediate("ffn_dim"), activation)
    before = config.flag("do_layer_norm_before", default=True)
    if not before:
        attention, mlp = replace(attention, norm=None, stream_norm=first), replace(mlp, norm=None, stream_norm=second)
    removed = config.flag("_remove_final_layer_norm") or not before
    longest, narrow = parts.longest(), config.size("word_embed_proj_dim", default=parts.hidden)
    return parts.spec(
        "OPTForCausalLM",
        alike(attention, mlp, (None,) * parts.layers),
        longest,
        prefix="model.",
        embedding="model.decoder.embed_tokens",
        positions=PositionTable("model.decoder.embed_positions", longest + 2, first=2),
        final_norm=None if removed else parts.norm("model.decoder.final_layer_norm"),
        head="lm_head",
        narrow=None if narrow == parts.hidden else Narrow(narrow, *NARROW),
    )
