# SPDX-License-Identifier: Apache-2.0
"""Gemma: gains stored minus one, embeddings scaled by the root of their width."""

from collections.abc import Mapping
from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.models.config import ConfigReader
from linnet.models.parts import GatedParts, alike, read_softcap, read_window, read_windows
from linnet.models.prefixes import with_prefix
from linnet.models.spec import ArchSpec, LayerSpec

GELU = (("hidden_activation",), "gelu_pytorch_tanh")


def gemma(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 1 and CodeGemma: two norms a block. Published configs say gelu and mean it by tanh."""
    parts = GatedParts(
        config, max_context, tied=True, norm_offset=1.0, activation=GELU, head_size=256, max_positions=8192
    )
    config.require_off("use_bidirectional_attention")
    config.choice("hidden_act", accepted={"gelu": 0, "gelu_pytorch_tanh": 0}, default="gelu")
    bias = config.flag("attention_bias")
    spec = parts.spec("GemmaForCausalLM", alike(parts.attention(bias, bias), parts.mlp(), (None,) * parts.layers))
    return replace(spec, embedding_scale=parts.hidden**0.5)


def gemma2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 2: gains stored minus one, norms after both halves, soft caps, every second layer slides."""
    parts = GatedParts(
        config, max_context, tied=True, norm_offset=1.0, activation=GELU, head_size=256, max_positions=8192
    )
    config.require_off("use_bidirectional_attention")
    config.ignore("hidden_act", "sliding_window_size")
    windows = read_windows(config, parts.layers, read_window(config, 4096), lambda layer: layer % 2 == 0)
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


def gemma3(config: ConfigReader, max_context: int | None) -> ArchSpec:
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
    window, pattern = read_window(config, 4096), config.size("sliding_window_pattern", default=6)
    if window is None:
        raise CheckpointError(f"{config.where}: sliding_window is null; accepted is a whole number from 1")
    windows = read_windows(config, parts.layers, window, lambda layer: (layer + 1) % pattern > 0)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.with_head_norms(parts.attention(bias, bias)),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
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


def gemma3_pair(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Gemma 3 with its image encoder: the text model alone; images are not read."""
    _, fields = config.find(("text_config",))
    if not isinstance(fields, Mapping):
        raise CheckpointError(f"{config.where}: text_config is {fields!r}; accepted is an object")
    tied = config.flag("tie_word_embeddings", default=True)
    text = config.within("text_config", {**GEMMA3_SIZES, "tie_word_embeddings": tied, **fields})
    spec = gemma3(text, max_context)
    text.finish()
    config.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    return with_prefix(replace(spec, family="Gemma3ForConditionalGeneration"), "model.language_model.")
