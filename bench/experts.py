# SPDX-License-Identifier: Apache-2.0
"""Decoding one sequence of a mixture of experts: bytes per second over the bytes of the experts that a token gets.

    python bench/experts.py DIR [--layers 4] [--vocabulary 32768] [--threads N] [--steps 24] [--rounds 5] [--no-tiles]

Writes (once, into DIR) a checkpoint of Qwen3-30B-A3B's shape straight as W4A16 in groups of 128: 0.33 GB a layer, 17 GB
with all 48. Every expert has the same random codes, at its own place in the file; which experts a token gets its random
router says. Steps of random tokens are timed between two probes of the read bandwidth (limits.py); the first round,
which brings the file into memory, does not count.
"""

import argparse
import statistics
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from limits import MachineLimits, summary
from linnet.backends.cpu.backend import CpuBackend
from linnet.backends.cpu.tile_cache import TileCache
from linnet.backends.interface import Batch, Limits
from linnet.formats import CheckpointWriter
from linnet.models.families import arch_spec
from linnet.models.inventory import linear_shapes, required_tensors
from linnet.models.load import load_model
from linnet.plan import predict
from linnet.schemes import parse_scheme
from linnet.schemes.packed_weight import PackedWeight, quantize_weight

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
BLOCK, TOKENS = 16, 4096


def make(directory: Path, layers: int, vocabulary: int) -> None:
    """Write the checkpoint; a matrix of every shape is made once."""
    config = CONFIG | {"num_hidden_layers": layers, "vocab_size": vocabulary}
    spec, scheme = arch_spec(config), parse_scheme("W4A16").linear
    random = np.random.default_rng(0)
    linears, packed, dense = (
        linear_shapes(spec),
        dict[tuple[int, ...], PackedWeight](),
        dict[tuple[int, ...], np.ndarray](),
    )
    writer = CheckpointWriter(directory)
    for name, shape in required_tensors(spec).items():
        module = name.removesuffix(".weight")
        if len(shape) == 1:
            writer.add(name, np.ones(shape, ml_dtypes.bfloat16))
        elif module in linears:
            if shape not in packed:
                packed[shape] = quantize_weight(random.normal(0, 0.02, shape).astype(np.float32), scheme)
            writer.add_packed(module, packed[shape])
        elif name.endswith("mlp.gate.weight"):  # a router of its own for every layer
            writer.add(name, random.normal(0, 0.02, shape).astype(ml_dtypes.bfloat16))
        else:
            if shape not in dense:
                dense[shape] = random.normal(0, 0.02, shape).astype(ml_dtypes.bfloat16)
            writer.add(name, dense[shape])
    writer.publish(config, {})


def batch_of(token: int, position: int) -> Batch:
    """One row of one sequence, whose blocks lie in order."""
    one = np.array
    tables = np.arange(TOKENS // BLOCK, dtype=np.int32)[None]
    return Batch(
        one([token], np.int32),
        one([position], np.int32),
        one([position], np.int32),
        one([0, 1], np.int32),
        one([position + 1], np.int32),
        tables,
        one([0], np.int32),
    )


def main() -> None:
    """Make, open, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-tiles", action="store_true", help="read the codes as the checkpoint has them")
    options = parser.parse_args()
    path = options.directory / f"experts-{options.layers}"
    if not path.exists():
        make(path, options.layers, options.vocabulary)
    source, limits = load_model(path), Limits(1, 1, 1, BLOCK, TOKENS // BLOCK)
    tiles = None if options.no_tiles else TileCache(options.directory / "tiles")
    backend = CpuBackend(options.threads, tile_cache=tiles)
    started = time.perf_counter()
    executable = backend.prepare(source, "fast", limits)
    opened = time.perf_counter() - started
    states = executable.allocate_states(TOKENS // BLOCK)
    active = predict(source, limits, "fast", backend).step_weight_bytes
    roof, random, position = MachineLimits(options.threads), np.random.default_rng(1), 0
    shares, rates = [], []
    for turn in range(options.rounds + 1):
        before, taken = roof.read(), []
        for _ in range(options.steps):
            batch = batch_of(int(random.integers(options.vocabulary)), position)
            started = time.perf_counter()
            executable.execute(batch, states)
            taken.append(time.perf_counter() - started)
            position = (position + 1) % TOKENS
        if turn:
            rates.append(active / statistics.median(taken))
            shares.append(rates[-1] / ((before + roof.read()) / 2))
    whole = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    print(f"{backend.isa}, {backend.threads} threads, {options.layers} layers, {whole / 1e9:.2f} GB on disk")
    print(f"opened in {opened:.2f} s; a token reads {active / 1e6:.1f} MB ({active / whole:.1%} of it)")
    for name, values, unit in (("GB/s over active bytes", rates, 1e9), ("share of read bandwidth", shares, 1.0)):
        found = summary(values)
        print(f"{name}: {found['median'] / unit:.2f} [{found['min'] / unit:.2f} - {found['max'] / unit:.2f}]")


if __name__ == "__main__":
    main()
