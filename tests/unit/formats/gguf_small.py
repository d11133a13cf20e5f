# SPDX-License-Identifier: Apache-2.0
"""Small whole GGUF models of every architecture, written by the reference package: random weights in ggml's order."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, VOCABULARY = 2, 64, 96, 4, 2, 50
HEAD_SIZES = {"gemma2": 32, "gemma3": 32, "qwen3": 32}
FOUR_NORMS = ("gemma2", "gemma3")


def keys_of(architecture: str) -> dict[str, Any]:
    """The metadata that a converter writes, without the architecture's name in front."""
    keys: dict[str, Any] = {
        "context_length": 128,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": MLP,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "rope.freq_base": np.float32(10000.0),
    }
    if architecture in HEAD_SIZES:
        keys["attention.key_length"] = keys["attention.value_length"] = HEAD_SIZES[architecture]
    if architecture in FOUR_NORMS:
        keys["attention.sliding_window"] = 16
    if architecture == "gemma2":
        keys["attn_logit_softcapping"], keys["final_logit_softcapping"] = np.float32(50.0), np.float32(30.0)
    if architecture in ("llama", "phi3"):
        keys["rope.dimension_count"] = HIDDEN // HEADS
    return keys


def tensors_of(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor under ggml's name, [rows, columns], fp32."""
    rng = np.random.default_rng(seed)
    size = HEAD_SIZES.get(architecture, HIDDEN // HEADS)
    queries, keys = HEADS * size, KV_HEADS * size

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def gain(columns: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(columns)).astype(np.float32)

    result = {"token_embd.weight": weight(VOCABULARY, HIDDEN), "output_norm.weight": gain(HIDDEN)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        result[f"{block}.attn_norm.weight"] = gain(HIDDEN)
        if architecture == "phi3":
            result[f"{block}.attn_qkv.weight"] = weight(queries + 2 * keys, HIDDEN)
            result[f"{block}.ffn_up.weight"] = weight(2 * MLP, HIDDEN)
        else:
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                result[f"{block}.attn_{name}.weight"] = weight(rows, HIDDEN)
                if architecture == "qwen2":
                    result[f"{block}.attn_{name}.bias"] = weight(rows)
            result[f"{block}.ffn_gate.weight"] = weight(MLP, HIDDEN)
            result[f"{block}.ffn_up.weight"] = weight(MLP, HIDDEN)
        result[f"{block}.attn_output.weight"] = weight(HIDDEN, queries)
        result[f"{block}.ffn_norm.weight"] = gain(HIDDEN)
        result[f"{block}.ffn_down.weight"] = weight(HIDDEN, MLP)
        if architecture in ("qwen3", "gemma3"):
            result[f"{block}.attn_q_norm.weight"] = gain(size)
            result[f"{block}.attn_k_norm.weight"] = gain(size)
        if architecture in FOUR_NORMS:
            result[f"{block}.post_attention_norm.weight"] = gain(HIDDEN)
            result[f"{block}.post_ffw_norm.weight"] = gain(HIDDEN)
    return result


def write_gguf(
    path: Path,
    architecture: str,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    *,
    types: dict[str, str] | None = None,
    tokens: bool = True,
    **options: Any,
) -> Path:
    """``changes``: keys set, or removed (None); ``types``: tensor name -> type it is quantised to."""
    writer = gguf.GGUFWriter(path, architecture, **options)
    if tokens:
        writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for key, value in {**keys_of(architecture), **(changes or {})}.items():
        name = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, np.float32 | float):
            writer.add_float32(name, float(value))
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
    for name, tensor in (tensors_of(architecture) if tensors is None else tensors).items():
        kind = gguf.GGMLQuantizationType[(types or {}).get(name, "F32")]
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
