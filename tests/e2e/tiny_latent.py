# SPDX-License-Identifier: Apache-2.0
"""A tiny random model with latent attention, written with numpy, with the tokenizer of the tiny Llama."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_llama import CONTEXT, byte_level_tokenizer, write_tokenizer

from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.models.families import arch_spec
from linnet.models.inventory import required_tensors


def write_tiny_latent(directory: Path, seed: int = 0, dtype: str = "float32", spread: float = 0.4) -> Path:
    """Hidden 32, four heads whose keys have 16 elements and whose values 8, of a latent of 32; a narrow query; a dense
    layer and one of two groups of three experts, of which every token gets two and the one that all get."""
    tokenizer = byte_level_tokenizer()
    write_tokenizer(
        directory, tokenizer, bos_token=None, eos_token="<|im_end|>", tokenizer_class="PreTrainedTokenizerFast"
    )
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 32,
        "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 6, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "vocab_size": len(tokenizer["model"]["vocab"]),
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "eos_token_id": 2, "torch_dtype": dtype,
    }  # fmt: skip
    random, tensors = np.random.default_rng(seed), {}
    stored = NAME_TO_NUMPY["fp32" if dtype == "float32" else "bf16"]
    for name, shape in required_tensors(arch_spec(config)).items():
        gain = "norm" in name
        tensors[name] = (float(gain) + random.normal(0, 0.1 if gain else spread, shape)).astype(stored)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
