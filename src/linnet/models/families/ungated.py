# SPDX-License-Identifier: Apache-2.0
"""Families of layer norms with biases and a feed-forward without a gate: the GPT line."""

from dataclasses import replace
from functools import partial

from linnet.errors import CheckpointError, UnsupportedError
from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.parts import (
    ACTIVATIONS,
    MAXIMUM_HEADS,
    alibi_slopes,
    alike,
    divides,
    in_groups,
    interleaved_attention,
    plain_mlp,
    read_layers,
    read_windows,
)
from linnet.models.plain_parts import MODEL, RUNTIME, SUMMARY, PlainParts
from linnet.models.rope import Positions, plain_rope, read_rope
from linnet.models.spec import ArchSpec, AttentionSpec, NormSpec


def gpt_neox(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GPT-NeoX and Pythia: both halves read the block's input, a quarter of each head turns."""
    hidden, intermediate = config.size("hidden_size"), config.size("intermediate_size")
    heads = config.size("num_attention_heads", maximum=MAXIMUM_HEADS)
    block = "gpt_neox.layers.{layer}"
    bias = config.flag("attention_bias", default=True)
    fields = interleaved_attention(config, f"{block}.attention", hidden, heads, bias)
    longest = config.size("max_position_embeddings", default=2048, maximum=MAXIMUM_POSITIONS)
    positions = read_rope(
        config,
        fields["head_size"],
        longest,
        max_context,
        theta_names=("rotary_emb_base", "rope_theta"),
        fraction_names=("rotary_pct", "partial_rotary_factor"),
        default_fraction=0.25,
    )
    activation = config.choice("hidden_act", accepted=ACTIVATIONS, default="gelu")
    norm = partial(
        NormSpec, flavour="layer", epsilon=config.number("layer_norm_eps", default=1e-5, high=1.0), bias=True
    )
    attention = AttentionSpec(norm(f"{block}.input_layernorm"), rope=positions.rope, **fields)
    mlp = plain_mlp(block, norm(f"{block}.post_attention_layernorm"), hidden, intermediate, activation)
    parallel = config.flag("use_parallel_residual", default=True)
    return ArchSpec(
        family="GPTNeoXForCausalLM",
        prefix="gpt_neox.",
        vocabulary_size=config.size("vocab_size"),
        hidden_size=hidden,
        max_positions=positions.usable,
        longest_positions=positions.longest,
        layers=alike(attention, mlp, (None,) * read_layers(config), parallel),
        embedding="gpt_neox.embed_in",
        final_norm=norm("gpt_neox.final_layer_norm"),
        head="embed_out",
        tied_head=config.flag("tie_word_embeddings"),
    )


def bloom(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """BLOOM: no rope, each head pulls towards near keys (ALiBi); a norm right after the embedding."""
    hidden = config.size("hidden_size", "n_embed")
    heads = config.size("n_head", "num_attention_heads", maximum=MAXIMUM_HEADS)
    intermediate = config.size("n_inner", default=4 * hidden)
    if intermediate != 4 * hidden:
        raise UnsupportedError(f"{config.where}: n_inner is {intermediate}; supported is {4 * hidden}")
    config.require_off("apply_residual_connection_post_layernorm")
    config.ignore("slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion")
    config.ignore("offset_alibi", "skip_bias_add", "skip_bias_add_qkv")
    block = "transformer.h.{layer}"
    fields = interleaved_attention(config, f"{block}.self_attention", hidden, heads, True)
    norm = partial(
        NormSpec, flavour="layer", epsilon=config.number("layer_norm_epsilon", default=1e-5, high=1.0), bias=True
    )
    attention = AttentionSpec(norm(f"{block}.input_layernorm"), alibi_slopes=alibi_slopes(heads), **fields)
    mlp = plain_mlp(block, norm(f"{block}.post_attention_layernorm"), hidden, intermediate, "gelu_tanh")
    longest = config.size("seq_length", "max_position_embeddings", default=2048, maximum=MAXIMUM_POSITIONS)
    return ArchSpec(
        family="BloomForCausalLM",
        prefix="transformer.",
        vocabulary_size=config.size("vocab_size"),
        hidden_size=hidden,
        max_positions=longest,
        longest_positions=longest,
        layers=alike(attention, mlp, (None,) * read_layers(config, "n_layer", "num_hidden_layers")),
        embedding="transformer.word_embeddings",
        embedding_norm=norm("transformer.word_embeddings_layernorm"),
        final_norm=norm("transformer.ln_f"),
        head="lm_head",
        tied_head=config.flag("tie_word_embeddings", default=True),
    )


def gptj(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GPT-J: one norm in front of both halves, which are parallel; neighbouring elements turn; a head with a bias."""
    parts = PlainParts(config, "transformer.h.{layer}", tied=False)
    config.ignore(*SUMMARY, "n_ctx")
    config.require("scale_attn_weights", True)
    config.require("rotary", True)
    size = config.size("rotary_dim", default=parts.head_size, maximum=parts.head_size)
    if size % 2:
        raise CheckpointError(f"{config.where}: rotary_dim is {size}; rotary elements come in pairs")
    norm = parts.block_norm("ln_1")
    output = parts.linear("attn.out_proj", parts.hidden, parts.queries, bias=False)
    attention = parts.attention(norm, parts.apart("attn.*_proj", bias=False), output, plain_rope(size, "interleaved"))
    activation = parts.activation("activation_function", default="gelu_new")
    mlp = parts.mlp(norm, "mlp.fc_in", "mlp.fc_out", parts.intermediate("n_inner"), activation)
    return parts.spec(
        "GPTJForCausalLM",
        alike(attention, mlp, (None,) * parts.layers, parallel_residual=True),
        parts.longest(),
        prefix="transformer.",
        embedding="transformer.wte",
        final_norm=parts.norm("transformer.ln_f"),
        head="lm_head",
        head_bias=True,
    )


def falcon(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Falcon in three forms: 7B (one key head, parallel behind one norm), 40B (groups of heads, parallel behind two),
    RW (a key for each head, sequential, ALiBi)."""
    parts = PlainParts(config, "transformer.h.{layer}", tied=True, biases=config.flag("bias"))
    config.require_off("apply_residual_connection_post_layernorm")
    grouped = config.flag("new_decoder_architecture")
    shared = config.flag("multi_query", default=True) and not grouped
    parallel = config.flag("parallel_attn", default=True) or grouped
    stored_heads = config.size("num_kv_heads", default=parts.heads, maximum=MAXIMUM_HEADS)
    parts.kv_heads = stored_heads if grouped else 1 if shared else parts.heads
    group = divides(config, "number of heads", parts.heads, "num_kv_heads", parts.kv_heads)
    fused = parts.fused("self_attention.query_key_value")
    qkv = parts.split(fused) if shared else in_groups(fused, parts.kv_heads, group, parts.head_size)
    two_norms = grouped and config.size("num_ln_in_parallel_attn", default=2) == 2
    config.ignore("num_ln_in_parallel_attn")
    first = parts.block_norm("ln_attn" if two_norms else "input_layernorm")
    second = parts.block_norm("ln_mlp" if two_norms else "post_attention_layernorm")
    output = parts.linear("self_attention.dense", parts.hidden, parts.queries)
    longest = parts.longest()
    reach: Positions | int = longest
    attention = parts.attention(first, qkv, output)
    if config.flag("alibi"):
        slopes = alibi_slopes(parts.heads)  # added before queries and keys are scaled
        attention = replace(attention, alibi_slopes=tuple(slope * attention.scale for slope in slopes))
        config.ignore("rope_theta", "rope_parameters", "rope_scaling")
    else:
        reach = turned = read_rope(config, parts.head_size, longest, max_context)
        attention = replace(attention, rope=turned.rope)
    mlp = parts.mlp(
        first if parallel and not two_norms else second,
        *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        parts.intermediate("ffn_hidden_size"),
        parts.activation("activation", default="gelu"),
    )
    return parts.spec(
        "FalconForCausalLM",
        alike(attention, mlp, (None,) * parts.layers, parallel),
        reach,
        prefix="transformer.",
        embedding="transformer.word_embeddings",
        final_norm=parts.norm("transformer.ln_f"),
        head="lm_head",
    )


def phi(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Phi-1, 1.5 and 2: one norm in front of both halves, which are parallel; a part of a head turns; a head with a
    bias."""
    parts = PlainParts(config, "model.layers.{layer}", tied=False)
    parts.read_kv_heads()
    config.require_off("qk_layernorm")
    norm, longest = parts.block_norm("input_layernorm"), parts.longest()
    reach = read_rope(
        config, parts.head_size, longest, max_context, fraction_names=("partial_rotary_factor",), default_fraction=0.5
    )
    output = parts.linear("self_attn.dense", parts.hidden, parts.queries)
    attention = parts.attention(norm, parts.apart("self_attn.*_proj"), output, reach.rope)
    activation = parts.activation("hidden_act", default="gelu_new")
    mlp = parts.mlp(norm, "mlp.fc1", "mlp.fc2", parts.intermediate("intermediate_size"), activation)
    return parts.spec(
        "PhiForCausalLM",
        alike(attention, mlp, (None,) * parts.layers, parallel_residual=True),
        reach,
        **MODEL,
        final_norm=parts.norm("model.final_layernorm"),
        head_bias=True,
    )


def starcoder2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """StarCoder2: rope, heads that share keys, perhaps a window in every layer."""
    parts = PlainParts(config, "model.layers.{layer}", tied=True, biases=config.flag("use_bias", default=True))
    parts.read_kv_heads()
    for name, accepted in (("norm_type", "layer_norm"), ("mlp_type", "default"), ("scale_attn_weights", True)):
        config.require(name, accepted)
    config.ignore(*RUNTIME)
    reach = read_rope(config, parts.head_size, parts.longest(4096), max_context)
    output = parts.linear("self_attn.o_proj", parts.hidden, parts.queries)
    attention = parts.attention(
        parts.block_norm("input_layernorm"), parts.apart("self_attn.*_proj"), output, reach.rope
    )
    mlp = parts.mlp(
        parts.block_norm("post_attention_layernorm"),
        *("mlp.c_fc", "mlp.c_proj"),
        parts.intermediate("intermediate_size"),
        parts.activation("hidden_act", default="gelu_pytorch_tanh"),
    )
    windows = read_windows(config, parts.layers, config.optional_size("sliding_window"), lambda _: True)
    return parts.spec(
        "Starcoder2ForCausalLM", alike(attention, mlp, windows), reach, **MODEL, final_norm=parts.norm("model.norm")
    )
