# SPDX-License-Identifier: Apache-2.0
"""A transformers model -> a GGUF file, as llama.cpp's converters write it: their names, their rows, their keys.

Written here from those converters (conversion/*.py), apart from what Linnet's reader knows: it is what the reader is
compared with.
"""

import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "starcoder",
    "Starcoder2ForCausalLM": "starcoder2",
    "FalconForCausalLM": "falcon",
    "BloomForCausalLM": "bloom",
    "GPTNeoXForCausalLM": "gptneox",
    "PhiForCausalLM": "phi2",
    "StableLmForCausalLM": "stablelm",
    "CohereForCausalLM": "command-r",
    "Exaone4ForCausalLM": "exaone4",
    "Cohere2ForCausalLM": "cohere2",
    "GemmaForCausalLM": "gemma",
    "Olmo2ForCausalLM": "olmo2",
    "GraniteForCausalLM": "granite",
    "SmolLM3ForCausalLM": "smollm3",
    "GlmForCausalLM": "chatglm",
    "Glm4ForCausalLM": "glm4",
    "MixtralForCausalLM": "llama",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "OlmoeForCausalLM": "olmoe",
    "GptOssForCausalLM": "gpt-oss",
    "DeepseekV2ForCausalLM": "deepseek2",
    "DeepseekV3ForCausalLM": "deepseek2",
    "MambaForCausalLM": "mamba",
    "Mamba2ForCausalLM": "mamba2",
}
PAIRED = ("llama", "granite", "smollm3", "internlm2", "baichuan")
"""Converters derived from LlamaModel, or that call its permute."""
TURNED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
UNTURNED = ("gpt2", "starcoder", "bloom")
"""Architectures without a rope."""


def write_gguf(
    model: Any,
    path: Path,
    types: dict[str, str] | None = None,
    architecture: str | None = None,
    tensors: dict[str, Any] | None = None,
    tokenizer: bool = False,
    narrow: bool = False,
) -> Path:
    """``types``: end of a ggml name -> type it is stored as; everything else is F32. ``architecture``: of models that
    transformers has no code for, as if they were the one it has; ``tensors``: theirs under names of their own;
    ``tokenizer``: whether the file says how its tokens come about, without which llama.cpp reads none; ``narrow``: of
    latent attention as llama.cpp has it by now, see ``_narrow_keys``."""
    config = model.config
    architecture = architecture or FAMILIES[type(model).__name__]
    writer = gguf.GGUFWriter(path, architecture)
    _keys(writer, config, architecture, narrow)
    writer.add_token_list([*"t0", *(f"t{index}" for index in range(config.vocab_size - 2))])
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(["t 0"])
    for name, tensor in _tensors(model, architecture, tensors, narrow).items():
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


def _state_space_keys(writer: Any, config: Any, architecture: str) -> None:
    """MambaModel and Mamba2Model."""
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.expand * config.hidden_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank if architecture == "mamba" else config.num_heads)
    if architecture == "mamba":
        writer.add_ssm_dt_b_c_rms(False)
    else:
        writer.add_ssm_group_count(config.n_groups)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)


def _keys(writer: Any, config: Any, architecture: str, narrow: bool = False) -> None:
    if architecture.startswith("mamba"):
        _state_space_keys(writer, config, architecture)
        return
    writer.add_context_length(getattr(config, "max_position_embeddings", 64))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    wide = next((value for key in INTERMEDIATE if (value := getattr(config, key, None))), 4 * config.hidden_size)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "falcon":
        writer.add_head_count_kv(config.num_kv_heads if config.new_decoder_architecture else 1)
    elif architecture == "starcoder" or narrow:
        writer.add_head_count_kv(1)
    elif architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
        writer.add_layer_norm_eps(next(getattr(config, name) for name in names if hasattr(config, name)))
    _own_keys(writer, config, architecture)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    size = _head_size(config)
    if architecture == "deepseek2":
        _latent_keys(writer, config)
        _narrow_keys(writer, config) if narrow else _wide_keys(writer, config)
    elif getattr(config, "head_dim", None) and architecture != "falcon":
        writer.add_key_length(size)
        writer.add_value_length(size)
    if architecture in UNTURNED:
        return
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    if architecture in ("llama", "phi3", "gptneox", "phi2", "stablelm", "chatglm", "glm4"):
        writer.add_rope_dimension_count(int(size * full.get("partial_rotary_factor", 1.0)))
    if "sliding_attention" in rope:
        writer.add_float32(f"{architecture}.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_array(
            f"{architecture}.attention.sliding_window_pattern",
            [kind == "sliding_attention" for kind in config.layer_types],
        )
    if architecture == "exaone4" and config.sliding_window:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
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
    if getattr(config, "sliding_window", None) and architecture not in ("qwen2", "starcoder2", "smollm3"):
        writer.add_sliding_window(config.sliding_window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            writer.add_float32(f"{architecture}.{key}", getattr(config, key))


def _wide_keys(writer: Any, config: Any) -> None:
    """DeepseekV2Model, before llama.cpp took the narrow vectors themselves for keys and values."""
    writer.add_key_length(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length(config.v_head_dim)


def _narrow_keys(writer: Any, config: Any) -> None:
    """DeepseekV2Model since then: attention of one head, and a matrix of every head in front of it and behind it."""
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)


def _keys_and_values_apart(tensors: dict[str, Any], config: Any) -> dict[str, Any]:
    """Of every head its keys' matrix [inputs, outputs], and its values' [outputs, inputs]."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.endswith("kv_b_proj.weight"):
            found[name] = tensor
            continue
        both = tensor.unflatten(0, (config.num_attention_heads, -1))
        keys, values = both.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        found[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
        found[name.replace("kv_b_proj", "v_b_proj")] = values
    return found


def _latent_keys(writer: Any, config: Any) -> None:
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    sigmoid = type(config).__name__ == "DeepseekV3Config"
    writer.add_expert_weights_norm(sigmoid)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    if config.n_group is not None:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    if "mscale_all_dim" in config.rope_parameters:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner")


def _own_keys(writer: Any, config: Any, architecture: str) -> None:
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if architecture in ("command-r", "cohere2"):
        writer.add_logit_scale(config.logit_scale)
    if architecture == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _tensors(
    model: Any, architecture: str, tensors: dict[str, Any] | None, narrow: bool = False
) -> dict[str, np.ndarray]:
    config = model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    result: dict[str, np.ndarray] = {}
    tensors = model.state_dict() if architecture == "gpt-oss" else tensors or model.state_dict()
    if narrow:
        tensors = _keys_and_values_apart(tensors, config)
    for name, tensor in _gates_apart(_heads_together(_stacked(tensors))).items():
        if "rotary_pos_emb" in name:
            continue
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture in PAIRED and ".q_proj." in name:
            array = _permuted(array, config.num_attention_heads)
        if architecture in PAIRED and ".k_proj." in name:
            array = _permuted(array, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if architecture == "gpt2" and name.endswith(TURNED):
            array = array.T
        if architecture in ("falcon", "bloom", "gptneox") and ".query_key_value." in name:
            array = _ungrouped(array, config, architecture)
        if name.endswith("e_score_correction_bias"):
            name = name.replace("_bias", ".bias")
        if architecture in ("bloom", "chatglm"):
            name = name.removeprefix("transformer.")
        if ".mixer." in name:
            name, array = _of_a_mixer(name, array, config)
        stem, _, kind = name.rpartition(".")
        if stem.endswith(("A_log", "D")):
            result[str(names.get_name(stem))] = np.ascontiguousarray(array)
            continue
        ggml = names.get_name(stem)
        assert ggml is not None, name
        result[f"{ggml}.{kind}"] = np.ascontiguousarray(array)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        result["rope_freqs.weight"] = _llama3_factors(rope, _head_size(config))
    if rope.get("rope_type") == "longrope":
        for which in ("short", "long"):
            result[f"rope_factors_{which}.weight"] = np.array(rope[f"{which}_factor"], np.float32)
    return result


def _of_a_mixer(name: str, array: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    """What MambaModel and Mamba2Model do: decays as they are multiplied, a second dimension for what heads share."""
    groups = getattr(config, "n_groups", 0)
    if name.endswith("A_log"):
        return f"{name}.", -np.exp(array.reshape(-1, 1) if groups else array)
    if name.endswith(".D"):
        return f"{name}.", array.reshape(-1, 1) if groups else array
    if name.endswith("conv1d.weight"):
        return name, array[:, 0]
    if name.endswith("mixer.norm.weight"):
        return name, array.reshape(groups, -1)
    return name.replace("dt_bias", "dt.bias"), array


def _gates_apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """What GptOssModel does to experts that are stacks: [experts, outputs, inputs], gate and up in two."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts\.)(gate_up|down)_proj(_bias)?", name)
        if match is None:
            found[name.replace("self_attn.sinks", "self_attn.sinks.weight")] = tensor
            continue
        kind, rows = ("bias", tensor) if match[3] else ("weight", tensor.transpose(1, 2))
        parts = {"gate": rows[:, ::2], "up": rows[:, 1::2]} if match[2] == "gate_up" else {"down": rows}
        found |= {f"{match[1]}{part}_proj.{kind}": values for part, values in parts.items()}
    return found


def _heads_together(tensors: dict[str, Any]) -> dict[str, Any]:
    """What StableLMModel does to norms of heads: those of a layer in one tensor."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        stem, norms, number = name.partition(".norms.")
        if not norms:
            found[name] = tensor
        elif number == "0.weight":
            count = sum(key.startswith(f"{stem}.norms.") for key in tensors)
            found[f"{stem}.weight"] = torch.stack([tensors[f"{stem}.norms.{head}.weight"] for head in range(count)])
    return found


def _stacked(tensors: dict[str, Any]) -> dict[str, Any]:
    """The experts' tensors of a layer in one, under the names that converters give them."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)\.weight", name)
        if match is None:
            found[name] = tensor
        elif match[2] == "0":
            own = f"{match[1]}.experts.{{}}.{match[3]}.weight"
            count = sum(re.fullmatch(re.escape(own).replace(r"\{\}", r"\d+"), key) is not None for key in tensors)
            several = [tensors[own.format(index)] for index in range(count)]
            merged = match[1].replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
            merged = merged if "feed_forward" in merged else match[1]
            found[f"{merged}.experts.{match[3]}.weight"] = torch.stack(several)
    return found


def _ungrouped(array: np.ndarray, config: Any, architecture: str) -> np.ndarray:
    """What FalconModel, BloomModel and GPTNeoXModel do to the fused tensor: all queries, all keys, all values."""
    groups = config.num_attention_heads
    if architecture == "falcon":
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
    each = config.num_attention_heads // groups
    size = config.hidden_size // config.num_attention_heads
    parted = array.reshape(groups, each + 2, size, *array.shape[1:])
    parts = (parted[:, :-2], parted[:, -2:-1], parted[:, -1:])
    return np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])


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
