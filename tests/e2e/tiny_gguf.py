# SPDX-License-Identifier: Apache-2.0
"""The tiny Llama directory as a GGUF file, written by the reference package as llama.cpp's converter does."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_tiny_gguf(directory: Path, path: Path, kind: str = "F32", **split: Any) -> Path:
    """``directory``: of ``write_tiny_llama``. ``kind``: the type of every matrix; ``split``: GGUFWriter's options."""
    config = json.loads((directory / "config.json").read_text())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama", **split)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if index in special else 1 for index in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_chat_template(json.loads((directory / "tokenizer_config.json").read_text())["chat_template"])
    writer.add_float32("general.sampling.temp", 0.25)
    for name, tensor in load_file(directory / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        if stem in OUTER:
            ours = OUTER[stem]
        else:
            _, _, layer, inner = stem.split(".", 3)
            ours = f"blk.{layer}.{NAMES[inner]}"
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(ours.rpartition(".")[2])
        if heads is not None:
            parts = tensor.reshape(config[heads], 2, config["head_dim"] // 2, -1)
            tensor = parts.swapaxes(1, 2).reshape(tensor.shape)
        tensor = np.ascontiguousarray(tensor.astype(np.float32))
        number = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        if number.name == "F32":
            writer.add_tensor(f"{ours}.{end}", tensor)
        else:
            writer.add_tensor(f"{ours}.{end}", gguf.quants.quantize(tensor, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
