# SPDX-License-Identifier: Apache-2.0
"""The same GGUF file in Linnet, in llama.cpp and, dequantised, in transformers: perplexity and speed.

    python bench/gguf_peers.py MODEL.gguf --llama-cpp DIRECTORY --text FILE [--only speed|perplexity]

DIRECTORY holds llama-bench and llama-perplexity. Perplexity is llama.cpp's: windows of 512 tokens that do not overlap,
of each the later half is counted, and where the file says so each begins with BOS. Speed is measured in turns, each
sample between two probes of the machine's read bandwidth; ratios are of neighbours. Needs torch, transformers and gguf
for the perplexity.
"""

import argparse
import json
import lzma
import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limits import MachineLimits, Probe
from linnet.api import LLM
from linnet.text import Tokenizer
from process import THREADS, EngineProcess
from samples import Summary, summarise

WINDOW, COUNTED_FROM = 512, 257
PROMPT, NEW = 512, 64


def read_text(path: Path, characters: int) -> str:
    """The first characters of a text, .xz too."""
    opener: Callable[..., Any] = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return str(file.read(characters))


def windows(tokenizer: Tokenizer, text: str, tokens: int) -> list[list[int]]:
    """As llama-perplexity cuts them."""
    ids = tokenizer.encode(text)
    rows = [ids[start : start + WINDOW] for start in range(0, min(len(ids), tokens) - WINDOW + 1, WINDOW)]
    if tokenizer.adds_bos:
        rows = [[int(tokenizer.bos_token_id or 0), *row[1:]] for row in rows]
    return rows


def perplexity(logprobs: list[np.ndarray]) -> float:
    """Of all tokens counted."""
    return math.exp(-float(np.mean(np.concatenate(logprobs).astype(np.float64))))


def ours(model: Path, rows: list[list[int]], policy: Any) -> float:
    """Linnet on the file as it lies."""
    with LLM(model, policy=policy, max_model_len=WINDOW, max_sequences=4, prefix_cache=False) as llm:
        return perplexity(llm.score(rows, starts=[COUNTED_FROM] * len(rows)))


def dequantised(model: Path, rows: list[list[int]]) -> float:
    """transformers in fp32 on the weights it reads from the file."""
    import torch
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for row in rows:
            logits = network(torch.tensor([row])).logits[0, COUNTED_FROM - 1 : -1].log_softmax(-1)
            found.append(logits.gather(1, torch.tensor(row[COUNTED_FROM:])[:, None])[:, 0].numpy())
    return perplexity(found)


def theirs(program: Path, model: Path, text: str, count: int) -> float:
    """llama-perplexity on as many windows."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        command = [program, "-m", model, "-f", file.name, "-c", WINDOW, "-b", WINDOW, "-t", THREADS, "--chunks", count]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    match = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if match is None:
        raise SystemExit(f"{program} printed no estimate: {done.stderr[-400:]}")
    return float(match.group(1))


def print_perplexity(model: Path, directory: Path, text: str, tokens: int) -> None:
    """One line an engine, each beside transformers."""
    rows = windows(Tokenizer.open(model), text, tokens)
    counted = len(rows) * (WINDOW - COUNTED_FROM)
    print(f"{model.name}: perplexity of {counted:,} tokens in {len(rows)} windows of {WINDOW}", flush=True)
    reference = dequantised(model, rows)
    print(f"  {'transformers, dequantised, fp32':34} {reference:.4f}", flush=True)
    for name, measure in (
        ("Linnet exact", lambda: ours(model, rows, "exact")),
        ("Linnet fast", lambda: ours(model, rows, "fast")),
        ("llama.cpp", lambda: theirs(directory / "llama-perplexity", model, text, len(rows))),
    ):
        value = measure()
        print(f"  {name:34} {value:.4f}  {value / reference - 1:+.2e}", flush=True)


def bench_theirs(program: Path, model: Path) -> dict[str, float]:
    """prefill and decode in tokens/s by llama-bench."""
    command = [program, "-m", model, "-p", PROMPT, "-n", NEW, "-t", THREADS, "-r", 1, "-o", "json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return {("prefill" if run["n_prompt"] else "decode"): float(run["avg_ts"]) for run in json.loads(done.stdout)}


def bench_ours(engine: EngineProcess) -> dict[str, float]:
    """The same of an open model."""
    prefill = engine.generate(PROMPT, 1)
    decode = engine.generate(1, NEW + 1)
    return {
        "prefill": PROMPT / prefill["first_s"],
        "decode": NEW / (decode["total_s"] - decode["first_s"]),
    }


def print_speed(model: Path, directory: Path, rounds: int, warm: bool) -> None:
    """Both engines in turns, medians, and ratios of neighbours. warm: Linnet is asked once before each sample, as
    llama-bench asks itself: what a file too large for both to stay in memory needs."""
    limits, samples = MachineLimits(), list[tuple[dict[str, float], dict[str, float], Probe]]()
    with tempfile.TemporaryDirectory() as folder, EngineProcess("linnet", model, Path(folder) / "log") as engine:
        bench_ours(engine)
        for _ in range(rounds):
            if warm:
                bench_ours(engine)
            probe, own = Probe.around(limits, lambda: bench_ours(engine))
            samples.append((own, bench_theirs(directory / "llama-bench", model), probe))
    read = summarise(probe.read_bytes_per_s / 1e9 for _, _, probe in samples)
    print(f"{model.name}: tokens/s on {THREADS} threads, {rounds} rounds; memory read at {read.show()} GB/s")
    print(f"  {'':8} {'Linnet':>20} {'llama.cpp':>20} {'ratio':>20} {'share of bandwidth':>20}")
    for name in ("prefill", "decode"):
        own, other = (summarise(sample[index][name] for sample in samples) for index in (0, 1))  # type: ignore[index]
        ratio: Summary = summarise(sample[0][name] / sample[1][name] for sample in samples)
        share = ""
        if name == "decode":
            size = model.stat().st_size
            share = f"{summarise(sample[0][name] * size / sample[2].read_bytes_per_s for sample in samples).median:.0%}"
        print(f"  {name:8} {own.show():>20} {other.show():>20} {ratio.show():>20} {share:>20}", flush=True)


def main() -> None:
    """Measure each file and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=20_480, help="for the perplexity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="ask Linnet once before each sample, uncounted")
    parser.add_argument("--only", choices=("speed", "perplexity"))
    options = parser.parse_args()
    for model in options.model:
        if options.only != "speed":
            if options.text is None:
                parser.error("the perplexity needs --text")
            print_perplexity(model, options.llama_cpp, read_text(options.text, 8 * options.tokens), options.tokens)
        if options.only != "perplexity":
            print_speed(model, options.llama_cpp, options.rounds, options.warm)


if __name__ == "__main__":
    main()
