# SPDX-License-Identifier: Apache-2.0
"""Random-weight checkpoints of real shapes, with a tokenizer of the real vocabulary size.

    python bench/make_model.py llama-3.2-1b DIR
    python bench/make_model.py qwen2.5-0.5b DIR

Speed and memory do not depend on the values, so nothing needs to be downloaded; quality is measured elsewhere.
Shapes: the models' published config.json files.
"""

import argparse
import itertools
import json
import string
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from linnet.errors import LinnetError
from linnet.formats import CheckpointWriter

SHAPES: dict[str, dict[str, object]] = {
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "attention_bias": False,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
    },
}
SHARED: dict[str, object] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def write_tokenizer(directory: Path, size: int) -> None:
    """A byte-level BPE of exactly ``size`` entries whose merges spell letter sequences; real in size and speed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {symbol: index + 1 for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    letters = string.ascii_lowercase
    words = itertools.chain(
        (("Ġ", letter) for letter in letters),
        itertools.product(letters, letters),
        (("Ġ" + first, second) for first, second in itertools.product(letters, letters)),
        ((first + second, third) for first, second, third in itertools.product(letters, repeat=3)),
        ((a + b, c + d) for a, b, c, d in itertools.product(letters, repeat=4)),
    )
    for left, right in words:
        if len(vocabulary) == size:
            break
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def tensors(config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama-like checkpoint; Qwen2 adds biases to q, k and v."""
    hidden, inner, heads, kv_heads = (
        int(config[key])  # type: ignore[call-overload]
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    size = int(config.get("head_dim", hidden // heads))  # type: ignore[call-overload]
    biased = config["model_type"] == "qwen2"
    result: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (int(config["vocab_size"]), hidden))]  # type: ignore[call-overload]
    for layer in range(int(config["num_hidden_layers"])):  # type: ignore[call-overload]
        prefix = f"model.layers.{layer}"
        projections = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}
        for name, rows in projections.items():
            result.append((f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)))
            if biased:
                result.append((f"{prefix}.self_attn.{name}_proj.bias", (rows,)))
        result += [
            (f"{prefix}.self_attn.o_proj.weight", (hidden, heads * size)),
            (f"{prefix}.mlp.gate_proj.weight", (inner, hidden)),
            (f"{prefix}.mlp.up_proj.weight", (inner, hidden)),
            (f"{prefix}.mlp.down_proj.weight", (hidden, inner)),
            (f"{prefix}.input_layernorm.weight", (hidden,)),
            (f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        ]
    return [*result, ("model.norm.weight", (hidden,))]


def make(shape: str, directory: Path, seed: int = 0) -> None:
    """Write the checkpoint; norms are ones, biases small, matrices normal with standard deviation 0.02."""
    config = SHAPES[shape] | SHARED
    generator = np.random.default_rng(seed)
    writer = CheckpointWriter(directory)
    names = tensors(config)
    for number, (name, dimensions) in enumerate(names, start=1):
        if name.endswith(("norm.weight", "layernorm.weight")):
            values = np.ones(dimensions, np.float32)
        else:
            values = generator.standard_normal(dimensions, dtype=np.float32)
            values *= np.float32(0.02)
        writer.add(name, values.astype(ml_dtypes.bfloat16))
        print(f"\r{number}/{len(names)} tensors", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    writer.publish(config, {})
    write_tokenizer(directory, int(config["vocab_size"]))  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        make(arguments.shape, arguments.directory, arguments.seed)
    except LinnetError as error:
        sys.exit(f"make_model: {error}")


if __name__ == "__main__":
    main()
