# SPDX-License-Identifier: Apache-2.0
"""Families of gated feed-forwards and RMS norms, as Llama has them, but for Google's."""

from dataclasses import replace

from linnet.errors import CheckpointError, UnsupportedError
from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.parts import (
    MAXIMUM_HEADS,
    GatedParts,
    Windows,
    alibi_slopes,
    alike,
    consecutive,
    divides,
    in_groups,
    read_layers,
    read_window,
    read_windows,
)
from linnet.models.spec import ArchSpec, AttentionSpec, LayerSpec, MlpSpec, Projection


def llama(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Llama 1, 2, 3.x: transformers ``LlamaForCausalLM``."""
    parts = GatedParts(config, max_context, max_positions=2048)
    bias = config.flag("attention_bias")
    mlp = parts.mlp(config.flag("mlp_bias"))
    config.require_off("rope_interleaved")
    config.ignore("is_llama_config")
    return parts.spec("LlamaForCausalLM", alike(parts.attention(bias, bias), mlp, (None,) * parts.layers))


def mistral(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mistral: every layer looks back ``sliding_window`` tokens unless it is null."""
    parts = GatedParts(config, max_context, max_positions=4096 * 32)
    windows = read_windows(config, parts.layers, read_window(config, 4096), lambda _: True)
    return parts.spec("MistralForCausalLM", alike(parts.attention(), parts.mlp(), windows))


def optional_windows(config: ConfigReader, layers: int) -> Windows:
    """Qwen's rule: with ``use_sliding_window``, layers from ``max_window_layers`` on slide; else none does."""
    use = config.flag("use_sliding_window")
    config.ignore("sliding_window")  # some converters write 0 where it is off
    width = read_window(config, 4096) if use else None
    _, full_layers = config.find(("max_window_layers",))
    first = 28 if full_layers is None else full_layers
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise CheckpointError(f"{config.where}: max_window_layers is {first!r}; accepted is a whole number from 0")
    return read_windows(config, layers, width, lambda layer: layer >= first)


def qwen2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen2 and Qwen2.5: biases on query, key and value, none on the output."""
    parts = GatedParts(config, max_context, max_positions=32768)
    config.require_off("use_mrope")
    windows = optional_windows(config, parts.layers)
    return parts.spec("Qwen2ForCausalLM", alike(parts.attention(qkv_bias=True), parts.mlp(), windows))


def qwen3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen3: RMS norm on every query and key head before the rope."""
    parts = GatedParts(config, max_context, head_size=128, max_positions=32768)
    bias = config.flag("attention_bias")
    attention = parts.with_head_norms(parts.attention(bias, bias))
    return parts.spec("Qwen3ForCausalLM", alike(attention, parts.mlp(), optional_windows(config, parts.layers)))


def phi3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Phi-3 and Phi-4-mini: query, key and value in one tensor, gate and up in another; long rope."""
    rope = {
        "fraction_names": ("partial_rotary_factor",),
        "type_aliases": {"su": "longrope", "yarn": "longrope"},
        "default_original": 4096,
    }
    parts = GatedParts(config, max_context, epsilon=1e-5, max_positions=4096, rope=rope)
    for name in ("interpolate_factor", "full_attn_mod"):
        config.ignore(*([name] if config.fields.get(name) == 1 else []))
    config.require_off("attention_bias", "mlp_bias", "lm_head_bias")
    queries, keys = parts.heads * parts.head_size, parts.kv_heads * parts.head_size
    qkv = parts.projection("self_attn.qkv_proj", queries + 2 * keys, parts.hidden)
    gate_up = parts.projection("mlp.gate_up_proj", 2 * parts.intermediate, parts.hidden)
    query, key, value = consecutive(qkv, queries, keys, keys)
    attention = replace(parts.attention(), query=query, key=key, value=value)
    gate, up = consecutive(gate_up, parts.intermediate, parts.intermediate)
    mlp = replace(parts.mlp(), gate=gate, up=up)
    window = config.optional_size("sliding_window")
    windows = read_windows(config, parts.layers, window, lambda _: True)
    return parts.spec("Phi3ForCausalLM", alike(attention, mlp, windows))


def olmo2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """OLMo 2: no norm in front of a half but one behind it; queries and keys normalised over their whole width."""
    parts = GatedParts(config, max_context, epsilon=1e-5, max_positions=2048)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.with_head_norms(parts.attention(bias, bias)),
        norm=None,
        post_norm=parts.block_norm("post_attention_layernorm"),
        norm_whole=True,
    )
    mlp = replace(parts.mlp(), norm=None, post_norm=parts.block_norm("post_feedforward_layernorm"))
    return parts.spec("Olmo2ForCausalLM", alike(attention, mlp, (None,) * parts.layers))


def granite(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Granite 3: multipliers of embeddings, scores, both halves and (as a divisor) logits."""
    parts = GatedParts(config, max_context, max_positions=2048)
    bias = config.flag("attention_bias")
    multiplier = config.number("residual_multiplier", default=1.0)
    attention = replace(
        parts.attention(bias, bias),
        scale=config.number("attention_multiplier", default=1.0),
        multiplier=multiplier,
    )
    mlp = replace(parts.mlp(config.flag("mlp_bias")), multiplier=multiplier)
    return replace(
        parts.spec("GraniteForCausalLM", alike(attention, mlp, (None,) * parts.layers)),
        embedding_scale=config.number("embedding_multiplier", default=1.0),
        logits_multiplier=1 / config.number("logits_scaling", default=1.0),
    )


def smollm3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """SmolLM3: every fourth layer without positions; those may slide."""
    parts = GatedParts(config, max_context, tied=True, max_positions=32768, rope={"default_theta": 2e6})
    interval = config.size("no_rope_layer_interval", default=4)
    turning = config.flags("no_rope_layers", parts.layers)
    if turning is None:
        turning = tuple((layer + 1) % interval > 0 for layer in range(parts.layers))
    window = config.optional_size("sliding_window") if config.flag("use_sliding_window") else None
    windows = read_windows(config, parts.layers, window, lambda layer: not turning[layer])
    bias = config.flag("attention_bias")
    attention, mlp = parts.attention(bias, bias), parts.mlp(config.flag("mlp_bias"))
    turned, still = (alike(mixer, mlp, windows) for mixer in (attention, replace(attention, rope=None)))
    layers = tuple(one if turns else other for one, other, turns in zip(turned, still, turning, strict=True))
    return parts.spec("SmolLM3ForCausalLM", layers)


def _glm_halves(config: ConfigReader, max_context: int | None) -> tuple[GatedParts, AttentionSpec, MlpSpec]:
    """Half of each head turns, by neighbouring elements; gate and up in one tensor."""
    parts = GatedParts(
        config,
        max_context,
        epsilon=1.5625e-7,
        max_positions=131072,
        rope={"fraction_names": ("partial_rotary_factor",), "default_fraction": 0.5},
    )
    attention = parts.attention(qkv_bias=config.flag("attention_bias", default=True))
    gate_up = parts.projection("mlp.gate_up_proj", 2 * parts.intermediate, parts.hidden)
    gate, up = consecutive(gate_up, parts.intermediate, parts.intermediate)
    rope = replace(parts.rope, style="interleaved")
    return parts, replace(attention, rope=rope), replace(parts.mlp(), gate=gate, up=up)


def chatglm(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """ChatGLM2, ChatGLM3 and GLM-4 9B by the names of their own repositories: what ``glm`` computes."""
    config.require_off(
        "add_bias_linear", "apply_residual_connection_post_layernorm", "prefix_projection", "pre_seq_len"
    )
    config.require_off("fp32_residual_connection", "quantization_bit", "tie_word_embeddings")
    for name in ("rmsnorm", "post_layer_norm", "multi_query_attention", "original_rope"):
        config.require(name, True)
    config.ignore(
        "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "classifier_dropout"
    )
    config.ignore("interleaved_qkv", "vocab_size")
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads", maximum=MAXIMUM_HEADS)
    whole = divides(config, "hidden_size", hidden, "num_attention_heads", heads)
    size = config.size("kv_channels", default=whole, maximum=1 << 14)
    config.require("partial_rotary_factor", 0.5)
    kv_heads = config.size("multi_query_group_num", maximum=MAXIMUM_HEADS)
    fields = {
        "vocab_size": config.size("padded_vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config.size("ffn_hidden_size"),
        "num_hidden_layers": read_layers(config, "num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "rms_norm_eps": config.number("layernorm_epsilon", high=1.0),
        "max_position_embeddings": config.size("seq_length", maximum=MAXIMUM_POSITIONS),
        "rope_theta": config.number("rope_theta", default=1e4) * config.number("rope_ratio", default=1.0, high=1e6),
    }
    parts, attention, mlp = _glm_halves(ConfigReader(fields, config.where), max_context)
    block = "transformer.encoder.layers.{layer}"
    widths = heads * size, kv_heads * size, kv_heads * size
    bias = config.flag("add_qkv_bias")
    fused = Projection(f"{block}.self_attention.query_key_value", sum(widths), hidden, bias)
    query, key, value = consecutive(fused, *widths)
    output = replace(attention.output, module=f"{block}.self_attention.dense")
    gate_up = Projection(f"{block}.mlp.dense_h_to_4h", 2 * parts.intermediate, hidden)
    gate, up = consecutive(gate_up, parts.intermediate, parts.intermediate)
    down = replace(mlp.down, module=f"{block}.mlp.dense_4h_to_h")
    norms = [replace(parts.norm(""), module=f"{block}.{name}_layernorm") for name in ("input", "post_attention")]
    layer = LayerSpec(
        replace(attention, norm=norms[0], query=query, key=key, value=value, output=output),
        replace(mlp, norm=norms[1], gate=gate, up=up, down=down),
    )
    return replace(
        parts.spec("ChatGLMModel", (layer,) * parts.layers),
        prefix="transformer.",
        embedding="transformer.embedding.word_embeddings",
        final_norm=replace(parts.norm(""), module="transformer.encoder.final_layernorm"),
        head="transformer.output_layer",
    )


def glm(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GLM-4 9B as transformers has it."""
    parts, attention, mlp = _glm_halves(config, max_context)
    return parts.spec("GlmForCausalLM", alike(attention, mlp, (None,) * parts.layers))


def glm4(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """GLM-4 0414: a norm behind each half as well."""
    parts, attention, mlp = _glm_halves(config, max_context)
    attention = replace(attention, post_norm=parts.block_norm("post_self_attn_layernorm"))
    mlp = replace(mlp, post_norm=parts.block_norm("post_mlp_layernorm"))
    return parts.spec("Glm4ForCausalLM", alike(attention, mlp, (None,) * parts.layers))


def internlm2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """InternLM2 by the names of its own repositories: query, key and value of each group of heads in one tensor. Its
    dynamic rope is the plain one up to the positions that the config names, where the model ends here."""
    parts = GatedParts(config, max_context, max_positions=2048, rope={"type_aliases": {"dynamic": "default"}})
    bias = config.flag("bias", default=True)
    queries, keys = parts.heads * parts.head_size, parts.kv_heads * parts.head_size
    fused = parts.projection("attention.wqkv", queries + 2 * keys, parts.hidden, bias)
    query, key, value = in_groups(fused, parts.kv_heads, parts.heads // parts.kv_heads, parts.head_size)
    attention = replace(
        parts.attention(),
        norm=parts.block_norm("attention_norm"),
        query=query,
        key=key,
        value=value,
        output=parts.projection("attention.wo", parts.hidden, queries, bias),
    )
    mlp = replace(
        parts.mlp(),
        norm=parts.block_norm("ffn_norm"),
        gate=parts.projection("feed_forward.w1", parts.intermediate, parts.hidden),
        up=parts.projection("feed_forward.w3", parts.intermediate, parts.hidden),
        down=parts.projection("feed_forward.w2", parts.hidden, parts.intermediate),
    )
    spec = parts.spec("InternLM2ForCausalLM", alike(attention, mlp, (None,) * parts.layers))
    return replace(spec, embedding="model.tok_embeddings", head="output")


def baichuan(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Baichuan 7B by the names of its own repository: query, key and value in one tensor."""
    parts = GatedParts(config, max_context, max_positions=4096)
    return parts.spec("BaiChuanForCausalLM", alike(_packed(parts), parts.mlp(), (None,) * parts.layers))


def baichuan_alibi(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Baichuan 13B: ALiBi. Baichuan 2, which is called the same, has another vocabulary and a head that is normalised
    when it is used; its 7B turns."""
    fields = {"max_position_embeddings": config.size("model_max_length", "max_position_embeddings", default=4096)}
    own = ConfigReader({**fields, **config.fields}, config.where, config.warnings)
    own.ignore("model_max_length", "gradient_checkpointing")
    if own.size("vocab_size") == _BAICHUAN_2:
        raise UnsupportedError(f"{own.where}: vocab_size {_BAICHUAN_2} is Baichuan 2's, whose head is not supported")
    parts = GatedParts(own, max_context, max_positions=4096)
    attention = parts.attention() if own.flag("_query_key_value_apart") else _packed(parts)
    attention = replace(attention, rope=None, alibi_slopes=alibi_slopes(parts.heads))
    config.understood |= own.understood
    return parts.spec("BaichuanForCausalLM", alike(attention, parts.mlp(), (None,) * parts.layers))


_BAICHUAN_2 = 125696


def _packed(parts: GatedParts) -> AttentionSpec:
    fused = parts.projection("self_attn.W_pack", 3 * parts.hidden, parts.hidden)
    query, key, value = consecutive(fused, parts.hidden, parts.hidden, parts.hidden)
    return replace(parts.attention(), query=query, key=key, value=value)


def exaone4(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """EXAONE 4: norms behind both halves only and of every query and key head; where some layers slide, those that see
    everything have no positions, and where none does all have."""
    parts = GatedParts(config, max_context, epsilon=1e-5, max_positions=2048)
    window = read_window(config, 4096)
    _, pattern = config.find(("sliding_window_pattern",))
    each = len(pattern) if isinstance(pattern, str) else pattern or 4  # LLLG: three of four slide
    windows = read_windows(config, parts.layers, window, lambda layer: (layer + 1) % each > 0)
    attention = replace(
        parts.with_head_norms(parts.attention()),
        norm=None,
        post_norm=parts.block_norm("post_attention_layernorm"),
    )
    mlp = replace(parts.mlp(), norm=None, post_norm=parts.block_norm("post_feedforward_layernorm"))
    turned, still = (alike(mixer, mlp, windows) for mixer in (attention, replace(attention, rope=None)))
    layers = tuple(
        one if sliding is not None or not any(windows) else other
        for one, other, sliding in zip(turned, still, windows, strict=True)
    )
    return parts.spec("Exaone4ForCausalLM", layers)


def bitnet(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """BitNet b1.58 2B 4T: a norm in front of the last linear of both halves, squares of a ReLU."""
    parts = GatedParts(
        config,
        max_context,
        epsilon=1e-5,
        activation=(("hidden_act",), "relu2"),
        max_positions=2048,
        rope={"default_theta": 500000.0},
    )
    bias = config.flag("attention_bias")
    attention = replace(parts.attention(bias, bias), output_norm=parts.block_norm("self_attn.attn_sub_norm"))
    mlp = replace(parts.mlp(), inner_norm=parts.block_norm("mlp.ffn_sub_norm"))
    return parts.spec("BitNetForCausalLM", alike(attention, mlp, (None,) * parts.layers))
