# SPDX-License-Identifier: Apache-2.0
"""A dense safetensors checkpoint (Llama or Qwen2) as GGUF, quantised by llama.cpp itself. Runs in its environment.

    scratch/peers/llama_cpp/bin/python bench/peers/gguf_file.py CHECKPOINT OUT.gguf Q4_0|Q4_K_M|Q8_0|BF16|F32

llama.cpp's own converter refuses tokenizers it has not met; the mapping is the same: its tensor names, its order of the
rotary halves (Llama's q and k are interleaved), its frequency factors, byte-level BPE split as GPT-2 does.
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import llama_cpp
import ml_dtypes
import numpy as np

KINDS = {"F32": 0, "BF16": 32, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
"""llama.cpp's llama_ftype."""

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


def stored(directory):
    """Every tensor as (name, mapped array); bf16 through ml_dtypes."""
    types = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "F16": np.float16}
    for file in sorted(Path(directory).glob("*.safetensors")):
        data = np.memmap(file, np.uint8, mode="r")
        size = int(data[:8].view(np.uint64)[0])
        for name, entry in json.loads(bytes(data[8 : 8 + size])).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                part = data[8 + size + start : 8 + size + stop]
                yield name, part.view(types[entry["dtype"]]).reshape(entry["shape"])


def renamed(name):
    """Hugging Face's name -> GGUF's."""
    stem, _, end = name.rpartition(".")
    if stem == "model.embed_tokens":
        return f"token_embd.{end}"
    if stem == "model.norm":
        return f"output_norm.{end}"
    if stem == "lm_head":
        return f"output.{end}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{end}"


def interleaved(array, heads):
    """Rotary halves side by side, as llama.cpp's 'llama' graph wants q and k."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def frequency_factors(rope, head_size):
    """What Llama 3 divides its rotary frequencies by (transformers' rope type llama3)."""
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_size, 2) / head_size)
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write(directory, target):
    """The checkpoint unquantised: matrices as stored, vectors fp32."""
    config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    architecture = {"llama": "llama", "qwen2": "qwen2"}[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= config.get("rope_scaling") or config.get("rope_parameters") or {}
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _write_tokenizer(writer, Path(directory), config)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", frequency_factors(rope, head_size))
    for name, array in stored(directory):
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = interleaved(array, heads if name.endswith("q_proj.weight") else kv_heads)
        if array.ndim == 1 or array.dtype != ml_dtypes.bfloat16:
            writer.add_tensor(renamed(name), array.astype(np.float32))
        else:
            data = np.ascontiguousarray(array).view(np.uint8)
            writer.add_tensor(renamed(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer, directory, config):
    record = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = record["model"]["vocab"] | {token["content"]: token["id"] for token in record["added_tokens"]}
    special = {token["id"] for token in record["added_tokens"] if token["special"]}
    names = {index: piece for piece, index in vocabulary.items()}
    size = config["vocab_size"]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(index, f"<unused{index}>") for index in range(size)])
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL if i in names else kinds.UNUSED for i in range(size)]
    )
    merges = record["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        if config.get(name) is not None:
            add(config[name])
    writer.add_add_bos_token(False)


def main():
    """Write, then quantise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("target")
    parser.add_argument("kind", choices=KINDS)
    options = parser.parse_args()
    plain = Path(options.target + ".plain")
    write(options.checkpoint, str(plain))
    if options.kind == "BF16":
        plain.rename(options.target)
        return
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = KINDS[options.kind]
    status = llama_cpp.llama_model_quantize(str(plain).encode(), options.target.encode(), parameters)
    plain.unlink()
    if status:
        raise SystemExit(f"llama.cpp could not quantise {options.checkpoint} to {options.kind}: status {status}")


if __name__ == "__main__":
    main()
