# SPDX-License-Identifier: Apache-2.0
"""What adapters cost: tokens/s of decoding with none, without any loaded, and with all of them mixed, in turns.

    python bench/adapters.py MODEL [--adapters 4] [--rank 16] [--sequences 16] [--new 64] [--rounds 5]

'plain' is the model opened without room for adapters; 'unused' the same model with them loaded and no request that
names one; 'one' gives all sequences the same adapter; 'mixed' gives every sequence one of them, in turn; 'half' every
second one. Adapters are random, on all
linears of the layers. Ratios to 'plain' of the same round, their median and extremes.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from linnet.api import LLM
from linnet.engine import SamplingParams
from linnet.models import load_model
from linnet.program.adapters import adapter_sites


def write_random(directory: Path, model: Path, rank: int, seed: int) -> Path:
    """A PEFT directory over all linears, bf16."""
    shapes = {site.module: (site.module_rows, site.columns) for site in adapter_sites(load_model(model).program)}
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            values = rng.normal(0, 0.02, shape).astype(ml_dtypes.bfloat16)
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = values
    directory.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear", "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def tokens_per_s(llm: LLM, through: list[str | None], new: int) -> float:
    """Of decoding: the time of all sequences less that of their prompts and first tokens."""

    def seconds(count: int) -> float:
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        prompts = [[5 + index] * 16 for index in range(len(through))]
        started = time.perf_counter()
        llm.generate(prompts, params, adapter=through)
        return time.perf_counter() - started

    return len(through) * (new - 1) / (seconds(new) - seconds(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, default in (("adapters", 4), ("rank", 16), ("sequences", 16), ("new", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [f"adapter-{index}" for index in range(asked.adapters)]
        paths = {
            name: write_random(Path(folder) / name, asked.model, asked.rank, seed) for seed, name in enumerate(names)
        }
        settings = {"max_sequences": asked.sequences, "max_model_len": 256, "prefix_cache": False}
        with LLM(asked.model, **settings) as plain, LLM(asked.model, adapters=paths, **settings) as adapted:
            count = asked.sequences
            ways: dict[str, tuple[LLM, list[str | None]]] = {
                "plain": (plain, [None] * count),
                "unused": (adapted, [None] * count),
                "one": (adapted, [names[0]] * count),
                "half": (adapted, [names[index // 2 % len(names)] if index % 2 else None for index in range(count)]),
                "mixed": (adapted, [names[index % len(names)] for index in range(count)]),
            }
            found: dict[str, list[float]] = {way: [] for way in ways}
            for llm, through in ways.values():
                tokens_per_s(llm, through, asked.new)
            for _ in range(asked.rounds):
                for way, (llm, through) in ways.items():
                    found[way].append(tokens_per_s(llm, through, asked.new))
    for way, rates in found.items():
        ratios = [rate / base for rate, base in zip(rates, found["plain"], strict=True)]
        shown = f"{statistics.median(ratios):.3f} of plain ({min(ratios):.3f}-{max(ratios):.3f})"
        print(f"{way:>7}  {statistics.median(rates):8.1f} tokens/s  {shown}")


if __name__ == "__main__":
    main()
