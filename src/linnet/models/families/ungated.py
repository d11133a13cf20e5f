# SPDX-License-Identifier: Apache-2.0
"""Families of layer norms with biases and a feed-forward without a gate: the GPT line."""

from functools import partial

from linnet.errors import UnsupportedError
from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.parts import (
    ACTIVATIONS,
    MAXIMUM_HEADS,
    alibi_slopes,
    alike,
    interleaved_attention,
    plain_mlp,
    read_layers,
)
from linnet.models.rope import read_rope
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
