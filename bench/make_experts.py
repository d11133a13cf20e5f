# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts of Qwen3-30B-A3B's shape as one GGUF file in Q4_0, random weights, written one tensor at a time.

    python bench/make_experts.py FILE.gguf [--layers 48] [--vocabulary 151936]

17.3 GB with all 48 layers, 0.36 GB a layer. Matrices of one shape have the same random codes, each at its own place in
the file, routers excepted: which experts a token gets is random. The vocabulary is byte-level with made-up pieces, so
the file runs in Linnet and in llama.cpp (bench/gguf_peers.py FILE --only speed) as it lies. Needs gguf.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from rich.progress import track

LAYERS, HIDDEN, HEADS, KEY_HEADS, HEAD, EXPERTS, CHOSEN, EXPERT = 48, 2048, 32, 4, 128, 128, 8, 768
Q4_0_BLOCK, Q4_0_BYTES = 32, 18
Tensor = tuple[str, tuple[int, ...], bool]
"""Name, shape with the outputs first, and whether it is quantised."""


def tensors(layers: int, vocabulary: int) -> Iterator[Tensor]:
    """In the order of the file."""
    yield "token_embd.weight", (vocabulary, HIDDEN), True
    yield "output_norm.weight", (HIDDEN,), False
    yield "output.weight", (vocabulary, HIDDEN), True
    for number in range(layers):
        yield from (
            (f"blk.{number}.{name}.weight", shape, quantised)
            for name, shape, quantised in (
                ("attn_norm", (HIDDEN,), False),
                ("attn_q", (HEADS * HEAD, HIDDEN), True),
                ("attn_q_norm", (HEAD,), False),
                ("attn_k", (KEY_HEADS * HEAD, HIDDEN), True),
                ("attn_k_norm", (HEAD,), False),
                ("attn_v", (KEY_HEADS * HEAD, HIDDEN), True),
                ("attn_output", (HIDDEN, HEADS * HEAD), True),
                ("ffn_norm", (HIDDEN,), False),
                ("ffn_gate_inp", (EXPERTS, HIDDEN), False),
                ("ffn_gate_exps", (EXPERTS, EXPERT, HIDDEN), True),
                ("ffn_up_exps", (EXPERTS, EXPERT, HIDDEN), True),
                ("ffn_down_exps", (EXPERTS, HIDDEN, EXPERT), True),
            )
        )


def q4_0(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random codes under scales that give values of about 0.02; uint8 [..., bytes of a row]."""
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // Q4_0_BLOCK, Q4_0_BYTES), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(0.005).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def metadata(writer: gguf.GGUFWriter, layers: int, vocabulary: int) -> None:
    """The published config of Qwen3-30B-A3B, and a vocabulary."""
    writer.add_block_count(layers)
    writer.add_context_length(40960)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(6144)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(EXPERT)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    letters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(161, 256) if code != 173]
    letters += [chr(256 + number) for number in range(256 - len(letters))]  # the stand-ins of bytes that do not print
    pieces = [*letters, "ab", *(f"{number:x}\u0120" for number in range(vocabulary - len(letters) - 2)), "<end>"]
    kinds = [gguf.TokenType.NORMAL] * (vocabulary - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary - 1)
    writer.add_add_bos_token(False)


def make(path: Path, layers: int, vocabulary: int) -> None:
    """Write the file; a matrix of every shape is made once."""
    random, made = np.random.default_rng(0), dict[tuple[int, ...], np.ndarray]()
    writer = gguf.GGUFWriter(path, "qwen3moe")
    metadata(writer, layers, vocabulary)
    names = list(tensors(layers, vocabulary))
    for name, shape, quantised in names:
        if quantised:
            rows = (*shape[:-1], shape[-1] // Q4_0_BLOCK * Q4_0_BYTES)
            size = int(np.prod(rows))
            writer.add_tensor_info(name, rows, np.dtype(np.uint8), size, gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, quantised in track(names, f"{path.name}"):
        if name.endswith("ffn_gate_inp.weight"):
            values = random.normal(0, 0.02, shape).astype(np.float32)
        elif not quantised:
            values = np.ones(shape, np.float32)
        else:
            if shape not in made:
                made[shape] = q4_0(shape, random)
            values = made[shape]
        writer.write_tensor_data(values)
    writer.close()


def main() -> None:
    """Make one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=151936)
    options = parser.parse_args()
    make(options.file, options.layers, options.vocabulary)
    print(f"{options.file}: {options.file.stat().st_size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
