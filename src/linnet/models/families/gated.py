# SPDX-License-Identifier: Apache-2.0
"""Families of gated feed-forwards and RMS norms, as Llama has them, but for Google's."""

from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.models.config import ConfigReader
from linnet.models.parts import GatedParts, Windows, alike, consecutive, read_window, read_windows
from linnet.models.spec import ArchSpec


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


def _optional_windows(config: ConfigReader, layers: int) -> Windows:
    """Qwen's rule: with ``use_sliding_window``, layers from ``max_window_layers`` on slide; else none does."""
    use = config.flag("use_sliding_window")
    width = read_window(config, 4096)
    _, full_layers = config.find(("max_window_layers",))
    first = 28 if full_layers is None else full_layers
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise CheckpointError(f"{config.where}: max_window_layers is {first!r}; accepted is a whole number from 0")
    return read_windows(config, layers, width if use else None, lambda layer: layer >= first)


def qwen2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen2 and Qwen2.5: biases on query, key and value, none on the output."""
    parts = GatedParts(config, max_context, max_positions=32768)
    config.require_off("use_mrope")
    windows = _optional_windows(config, parts.layers)
    return parts.spec("Qwen2ForCausalLM", alike(parts.attention(qkv_bias=True), parts.mlp(), windows))


def qwen3(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen3: RMS norm on every query and key head before the rope."""
    parts = GatedParts(config, max_context, head_size=128, max_positions=32768)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.attention(bias, bias),
        query_norm=parts.block_norm("self_attn.q_norm"),
        key_norm=parts.block_norm("self_attn.k_norm"),
    )
    return parts.spec("Qwen3ForCausalLM", alike(attention, parts.mlp(), _optional_windows(config, parts.layers)))


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
