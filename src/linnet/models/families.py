# SPDX-License-Identifier: Apache-2.0
"""config.json -> ArchSpec. The only file that knows model families by name; everything after it reads the spec.

A family is one function from its config to an ArchSpec. Fields are read through ``ConfigReader``: what is read is
understood, and anything left that could change the mathematics is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.parts import (
    ACTIVATIONS,
    MAXIMUM_HEADS,
    GatedParts,
    Windows,
    alibi_slopes,
    alike,
    interleaved_attention,
    plain_mlp,
    read_layers,
    read_softcap,
    read_windows,
)
from linnet.models.prefixes import with_prefix
from linnet.models.rope import read_rope
from linnet.models.spec import ArchSpec, AttentionSpec, LayerSpec, NormSpec


def _llama(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Llama 1, 2, 3.x: transformers ``LlamaForCausalLM``."""
    parts = GatedParts(config, max_context, max_positions=2048)
    bias = config.flag("attention_bias")
    mlp = parts.mlp(config.flag("mlp_bias"))
    config.require_off("rope_interleaved")
    config.ignore("is_llama_config")
    return parts.spec("LlamaForCausalLM", alike(parts.attention(bias, bias), mlp, (None,) * parts.layers))


def _window(config: ConfigReader, default: int) -> int | None:
    """An absent sliding_window means the family's default, as in transformers; an explicit null means none."""
    return config.optional_size("sliding_window") if "sliding_window" in config.fields else default


def _mistral(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mistral: every layer looks back ``sliding_window`` tokens unless it is null."""
    parts = GatedParts(config, max_context, max_positions=4096 * 32)
    windows = read_windows(config, parts.layers, _window(config, 4096), lambda _: True)
    return parts.spec("MistralForCausalLM", alike(parts.attention(), parts.mlp(), windows))


def _optional_windows(config: ConfigReader, layers: int) -> Windows:
    """Qwen's rule: with ``use_sliding_window``, layers from ``max_window_layers`` on slide; else none does."""
    use = config.flag("use_sliding_window")
    width = _window(config, 4096)
    _, full_layers = config.find(("max_window_layers",))
    first = 28 if full_layers is None else full_layers
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise CheckpointError(f"{config.where}: max_window_layers is {first!r}; accepted is a whole number from 0")
    return read_windows(config, layers, width if use else None, lambda layer: layer >= first)


def _qwen2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen2 and Qwen2.5: biases on query, key and value, none on the output."""
    parts = GatedParts(config, max_context, max_positions=32768)
    config.require_off("use_mrope")
    windows = _optional_windows(config, parts.layers)
    return parts.spec("Qwen2ForCausalLM", alike(parts.attention(qkv_bias=True), parts.mlp(), windows))


def _qwen3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen3: RMS norm on every query and key head before the rope."""
    parts = GatedParts(config, max_context, head_size=128, max_positions=32768)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.attention(bias, bias),
        query_norm=parts.block_norm("self_attn.q_norm"),
        key_norm=parts.block_norm("self_attn.k_norm"),
    )
    return parts.spec("Qwen3ForCausalLM", alike(attention, parts.mlp(), _optional_windows(config, parts.layers)))


GELU = (("hidden_activation",), "gelu_pytorch_tanh")


def _gemma2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 2: gains stored minus one, norms after both halves, soft caps, every second layer slides."""
    parts = GatedParts(
        config, max_context, tied=True, norm_offset=1.0, activation=GELU, head_size=256, max_positions=8192
    )
    config.require_off("use_bidirectional_attention")
    config.ignore("hidden_act", "sliding_window_size")
    windows = read_windows(config, parts.layers, _window(config, 4096), lambda layer: layer % 2 == 0)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.attention(bias, bias),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        softcap=read_softcap(config, "attn_logit_softcapping", 50.0),
    )
    return replace(
        parts.spec("Gemma2ForCausalLM", alike(*parts.between_norms(attention, parts.mlp()), windows)),
        embedding_scale=parts.hidden**0.5,
        logits_softcap=read_softcap(config, "final_logit_softcapping", 30.0),
    )


def _gemma3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 3, text: Gemma 2's norms and one per query and key head; five sliding layers with a rope of their own,
    then one that sees everything; no soft caps unless the config sets the last one.
    """
    thetas = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    parts = GatedParts(
        config,
        max_context,
        tied=True,
        norm_offset=1.0,
        activation=GELU,
        head_size=256,
        max_positions=131072,
        layer_thetas=thetas,
    )
    config.require_off("use_bidirectional_attention", "attn_logit_softcapping")
    config.ignore("hidden_act")
    window, pattern = _window(config, 4096), config.size("sliding_window_pattern", default=6)
    if window is None:
        raise CheckpointError(f"{config.where}: sliding_window is null; accepted is a whole number from 1")
    windows = read_windows(config, parts.layers, window, lambda layer: (layer + 1) % pattern > 0)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.attention(bias, bias),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        query_norm=parts.block_norm("self_attn.q_norm"),
        key_norm=parts.block_norm("self_attn.k_norm"),
    )
    full, mlp = parts.between_norms(attention, parts.mlp())
    sliding = replace(full, rope=parts.ropes["sliding_attention"], window=window)
    kinds = {None: LayerSpec(full, mlp), window: LayerSpec(sliding, mlp)}
    return replace(
        parts.spec("Gemma3ForCausalLM", tuple(kinds[window] for window in windows)),
        embedding_scale=parts.hidden**0.5,
        logits_softcap=read_softcap(config, "final_logit_softcapping", None),
    )


GEMMA3_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""What published configs of the pair leave out."""


def _gemma3_pair(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 3 with its image encoder: the text model alone; images are not read."""
    _, fields = config.find(("text_config",))
    if not isinstance(fields, Mapping):
        raise CheckpointError(f"{config.where}: text_config is {fields!r}; accepted is an object")
    tied = config.flag("tie_word_embeddings", default=True)
    text = config.within("text_config", {**GEMMA3_SIZES, "tie_word_embeddings": tied, **fields})
    spec = _gemma3(text, max_context)
    text.finish()
    config.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    return with_prefix(replace(spec, family="Gemma3ForConditionalGeneration"), "model.language_model.")


def _phi3(config: ConfigReader, max_context: int | None) -> ArchSpec:
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
    attention = replace(
        parts.attention(),
        query=replace(qkv, rows=((0, queries),)),
        key=replace(qkv, rows=((queries, queries + keys),)),
        value=replace(qkv, rows=((queries + keys, queries + 2 * keys),)),
    )
    mlp = replace(
        parts.mlp(),
        gate=replace(gate_up, rows=((0, parts.intermediate),)),
        up=replace(gate_up, rows=((parts.intermediate, 2 * parts.intermediate),)),
    )
    window = config.optional_size("sliding_window")
    windows = read_windows(config, parts.layers, window, lambda _: True)
    return parts.spec("Phi3ForCausalLM", alike(attention, mlp, windows))


def _gpt_neox(config: ConfigReader, max_context: int | None) -> ArchSpec:
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


def _bloom(config: ConfigReader, max_context: int | None) -> ArchSpec:
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


FAMILIES: dict[str, Callable[[ConfigReader, int | None], ArchSpec]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3_pair,
    "Phi3ForCausalLM": _phi3,
    "GPTNeoXForCausalLM": _gpt_neox,
    "BloomForCausalLM": _bloom,
}

ALIASES = {"LLaMAForCausalLM": "LlamaForCausalLM"}

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "bloom": "BloomForCausalLM",
}
"""For configs without ``architectures``."""


def supported_architectures() -> tuple[str, ...]:
    """Names accepted in a config's ``architectures``."""
    return tuple(FAMILIES)


def architecture(config: Mapping[str, Any]) -> str:
    """The architecture a config names. Raises UnsupportedError listing the supported ones."""
    listed = config.get("architectures")
    if not listed:
        named = MODEL_TYPES.get(str(config.get("model_type")), f"model_type {config.get('model_type')!r}")
    elif isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
        named = ALIASES.get(listed[0], listed[0])
    else:
        named = repr(listed)
    if named not in FAMILIES:
        raise UnsupportedError(f"architecture {named} is not supported; supported are:", supported_architectures())
    return named


def read_spec(config: Mapping[str, Any], max_context: int | None = None) -> tuple[ArchSpec, tuple[str, ...]]:
    """The ArchSpec of a parsed config.json, and warnings about what of it is passed over.

    ``max_context`` (tokens) only matters where rotary frequencies depend on it, see ``rope.read_rope``. Raises
    UnsupportedError for an architecture, option or field that nobody here understands, CheckpointError for a value
    that cannot be true, ConfigError for a context beyond the model's positions.
    """
    reader = ConfigReader(config)
    spec = FAMILIES[architecture(config)](reader, max_context)
    reader.finish()
    return spec, tuple(reader.warnings)


def arch_spec(config: Mapping[str, Any], max_context: int | None = None) -> ArchSpec:
    """``read_spec`` without its warnings."""
    return read_spec(config, max_context)[0]
