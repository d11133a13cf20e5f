# SPDX-License-Identifier: Apache-2.0
"""A tiny random Llama on disk: byte-level tokenizer, chat template, safetensors written with numpy (no torch)."""

import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("o", "n"), ("e", "r"), ("Ã", "©"), ("ð", "Ł"))
TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 256
CALIBRATION_TEXT = "the cat in the hat on a mat, and then another then there in the thin thing. " * 400


def byte_alphabet() -> list[str]:
    """GPT-2's alphabet in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def byte_level_tokenizer() -> dict:
    """tokenizer.json of a byte-level BPE with three special tokens (ids 0, 1, 2)."""
    vocabulary = {token: index for index, token in enumerate(SPECIALS)}
    for token in [*byte_alphabet(), *("".join(merge) for merge in MERGES)]:
        vocabulary.setdefault(token, len(vocabulary))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False} for i, t in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": [list(merge) for merge in MERGES]},
    }  # fmt: skip


def sentencepiece_tokenizer(strip: bool = True) -> dict:
    """tokenizer.json in the style of Llama 2: ▁ for spaces, byte fallback, BOS by the post-processor."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [*"abcdefghijklmnopqrstuvwxyz.,!é", "th", "he", "the", "▁the", "in", "▁a", "▁t", "▁▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [["t", "h"], ["h", "e"], ["th", "e"], ["▁", "the"], ["i", "n"], ["▁", "a"], ["▁", "t"], ["▁", "▁"]]
    stages = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
              {"type": "Fuse"}]  # fmt: skip
    if strip:
        stages.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False} for i, t in enumerate(tokens[:3])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": stages},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocabulary, "merges": merges},
    }  # fmt: skip


def write_tokenizer(directory: Path, tokenizer: dict, **config: object) -> Path:
    """The tokenizer's files alone."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def feed_forward(experts: int, intermediate: int, hidden: int) -> list[tuple[str, int, int]]:
    """Name, rows and columns of its linears, and of the router of several."""
    names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    if not experts:
        return [(names[0], intermediate, hidden), (names[1], intermediate, hidden), (names[2], hidden, intermediate)]
    block = "block_sparse_moe"
    found = [(f"{block}.gate", experts, hidden)]
    for expert in range(experts):
        each = f"{block}.experts.{expert}"
        found += [(f"{each}.w1", intermediate, hidden), (f"{each}.w3", intermediate, hidden)]
        found.append((f"{each}.w2", hidden, intermediate))
    return found


def write_tiny_llama(
    directory: Path,
    seed: int = 0,
    dtype: str = "float32",
    spread: float = 0.5,
    experts: int = 0,
    windows: Sequence[int | None] = (),
) -> Path:
    """A whole checkpoint: hidden 32, 2 layers, 4 heads over 2 KV heads, intermediate 64, context 256.

    With ``experts`` it is a Mixtral, of which every token gets two. With ``windows``, one for each layer and all that
    are not None alike, it is a Mistral whose layers see so many tokens.
    """
    tokenizer = byte_level_tokenizer()
    write_tokenizer(
        directory, tokenizer, bos_token=None, eos_token="<|im_end|>", chat_template=TEMPLATE,
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=CONTEXT,
    )  # fmt: skip
    vocabulary = len(tokenizer["model"]["vocab"])
    hidden, intermediate, layers, heads, kv_heads, head_size = 32, 64, len(windows) or 2, 4, 2, 8
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        values = random.normal(0, spread, shape).astype(np.float32)
        return values if dtype == "float32" else values.astype(ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(vocabulary, hidden), "lm_head.weight": weight(vocabulary, hidden)}
    ones = np.ones(hidden, np.float32).astype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    tensors["model.norm.weight"] = ones
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones
        tensors[prefix + "post_attention_layernorm.weight"] = ones
        for name, rows, columns in (
            ("self_attn.q_proj", heads * head_size, hidden), ("self_attn.k_proj", kv_heads * head_size, hidden),
            ("self_attn.v_proj", kv_heads * head_size, hidden), ("self_attn.o_proj", hidden, heads * head_size),
            *feed_forward(experts, intermediate, hidden),
        ):  # fmt: skip
            tensors[f"{prefix}{name}.weight"] = weight(rows, columns)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_size, "vocab_size": vocabulary, "hidden_act": "silu",
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 2,
        "torch_dtype": dtype,
    }  # fmt: skip
    if windows:
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "layer_types": kinds}
        config["sliding_window"] = max(window or 0 for window in windows)
    if experts:
        config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [0, 2]}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
