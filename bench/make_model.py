# SPDX-License-Identifier: Apache-2.0
"""Random-weight checkpoints of real shapes, with a tokenizer of the real vocabulary size.

    python bench/make_model.py llama-3.2-1b DIR
    python bench/make_model.py mamba-1.4b DIR
    python bench/make_model.py gemma-3-1b-thin DIR    # the keys, values and windows of Gemma 3 1B, little beside them

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
from linnet.models.families import arch_spec
from linnet.models.inventory import required_tensors

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
    "gemma-3-1b-thin": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 26,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 1024,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rms_norm_eps": 1e-6,
    },
    "mamba-1.4b": {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "state_size": 16,
        "expand": 2,
        "conv_kernel": 4,
        "time_step_rank": 128,
        "vocab_size": 50280,
        "max_position_embeddings": None,
        "rms_norm_eps": None,
        "layer_norm_epsilon": 1e-5,
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


def values(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Norms are ones, biases small, matrices normal with standard deviation 0.02; decays as models begin with."""
    if name.endswith(("norm.weight", "norm_f.weight", "layernorm.weight", ".D")):
        return np.ones(shape, np.float32)
    if name.endswith(".A_log"):
        return np.broadcast_to(np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)), shape)
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)


def make(shape: str, directory: Path, seed: int = 0) -> None:
    """Write the checkpoint."""
    config = {name: value for name, value in (SHARED | SHAPES[shape]).items() if value is not None}
    generator = np.random.default_rng(seed)
    writer = CheckpointWriter(directory)
    names = required_tensors(arch_spec(config))
    for number, (name, dimensions) in enumerate(names.items(), start=1):
        writer.add(name, values(name, dimensions, generator).astype(ml_dtypes.bfloat16))
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
