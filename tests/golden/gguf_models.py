# SPDX-License-Identifier: Apache-2.0
"""A transformers model -> a GGUF file, as llama.cpp's converters write it: their names, their rows, their keys.

Written here from those converters (conversion/*.py), apart from what Linnet's reader knows: it is what the reader is
compared with.
"""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
}


def write_gguf(model: Any, path: Path, types: dict[str, str] | None = None) -> Path:
    """``types``: end of a ggml name -> type it is stored as; everything else is F32."""
    config = model.config
    architecture = FAMILIES[type(model).__name__]
    writer = gguf.GGUFWriter(path, architecture)
    _keys(writer, config, architecture)
    writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    for name, tensor in _tensors(model, architecture).items():
        kind = next((kind for end, kind in (types or {}).items() if name.endswith(end)), "F32")
        number = gguf.GGMLQuantizationType[kind]
        if kind == "F32":
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _keys(writer: Any, config: Any, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    size = _head_size(config)
    if getattr(config, "head_dim", None):
        writer.add_key_length(size)
        writer.add_value_length(size)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    if architecture in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(size * full.get("partial_rotary_factor", 1.0)))
    if "sliding_attention" in rope:
        writer.add_float32(f"{architecture}.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_array(
            f"{architecture}.attention.sliding_window_pattern",
            [kind == "sliding_attention" for kind in config.layer_types],
        )
    if full["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(full["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(full["beta_slow"])
    if full["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    if getattr(config, "sliding_window", None) and architecture != "qwen2":
        writer.add_sliding_window(config.sliding_window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            writer.add_float32(f"{architecture}.{key}", getattr(config, key))


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    config = model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    result: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            array = _permuted(array, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            array = _permuted(array, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        stem, _, kind = name.rpartition(".")
        ggml = names.get_name(stem)
        assert ggml is not None, name
        result[f"{ggml}.{kind}"] = np.ascontiguousarray(array)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        result["rope_freqs.weight"] = _llama3_factors(rope, _head_size(config))
    if rope.get("rope_type") == "longrope":
        for which in ("short", "long"):
            result[f"rope_factors_{which}.weight"] = np.array(rope[f"{which}_factor"], np.float32)
    return result


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute."""
    parted = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return parted.swapaxes(1, 2).reshape(array.shape)


def _llama3_factors(rope: dict[str, Any], size: int) -> np.ndarray:
    """LlamaModel.generate_extra_tensors."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2) / size):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)
