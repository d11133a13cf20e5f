# SPDX-License-Identifier: Apache-2.0
"""Tiny random models whose layers carry a state, written with numpy, with the tokenizer of the tiny Llama."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_llama import byte_level_tokenizer, write_tokenizer

from linnet.models.families import arch_spec
from linnet.models.inventory import required_tensors


def write_tiny_hybrid(directory: Path, seed: int = 0, spread: float = 0.3) -> Path:
    """Of three layers the second attends and the others carry states of 8 heads in 2 groups; hidden 32."""
    tokenizer = byte_level_tokenizer()
    write_tokenizer(
        directory, tokenizer, bos_token=None, eos_token="<|im_end|>", tokenizer_class="PreTrainedTokenizerFast"
    )
    config = {
        "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "hidden_size": 32,
        "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "shared_intermediate_size": 48, "num_local_experts": 0,
        "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_expand": 2, "mamba_d_conv": 4,
        "vocab_size": len(tokenizer["model"]["vocab"]), "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "position_embedding_type": "nope", "attention_multiplier": 0.3, "residual_multiplier": 0.5,
        "tie_word_embeddings": True, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    random, tensors = np.random.default_rng(seed), {}
    for name, shape in required_tensors(arch_spec(config)).items():
        gain = "norm" in name
        tensors[name] = (float(gain) + random.normal(0, 0.1 if gain else spread, shape)).astype(np.float32)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_tiny_mamba(directory: Path, seed: int = 0, spread: float = 0.4) -> Path:
    """A whole checkpoint: hidden 32, 2 layers of 64 channels, 8 states, time steps of rank 16."""
    tokenizer = byte_level_tokenizer()
    write_tokenizer(
        directory, tokenizer, bos_token=None, eos_token="<|im_end|>", tokenizer_class="PreTrainedTokenizerFast"
    )
    vocabulary, hidden, width, states, rank, layers = len(tokenizer["model"]["vocab"]), 32, 64, 8, 16, 2
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0, spread, shape).astype(np.float32)

    tensors = {"backbone.embeddings.weight": weight(vocabulary, hidden)}
    tensors["backbone.norm_f.weight"] = np.ones(hidden, np.float32)
    for layer in range(layers):
        prefix = f"backbone.layers.{layer}."
        tensors[prefix + "norm.weight"] = np.ones(hidden, np.float32)
        tensors[prefix + "mixer.A_log"] = np.log(np.tile(np.arange(1, states + 1, dtype=np.float32), (width, 1)))
        tensors[prefix + "mixer.D"] = np.ones(width, np.float32)
        for name, *shape in (
            ("in_proj.weight", 2 * width, hidden), ("conv1d.weight", width, 1, 4), ("conv1d.bias", width),
            ("x_proj.weight", rank + 2 * states, width), ("dt_proj.weight", width, rank), ("dt_proj.bias", width),
            ("out_proj.weight", hidden, width),
        ):  # fmt: skip
            tensors[f"{prefix}mixer.{name}"] = weight(*shape)
    config = {
        "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": hidden, "state_size": states,
        "num_hidden_layers": layers, "time_step_rank": rank, "conv_kernel": 4, "expand": 2, "vocab_size": vocabulary,
        "intermediate_size": width, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "use_bias": False,
        "use_conv_bias": True, "tie_word_embeddings": True, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
