# SPDX-License-Identifier: Apache-2.0
"""One engine in one process, driven by JSON lines, so that two engines can be measured turn by turn in one run.

    python bench/workers.py linnet DIR
    python bench/workers.py transformers DIR

The first line out reports the first token (seconds since this process was started). Then one request a line:
{"prompt": 512, "new": 1, "sequences": 1} -> {"first_s": ..., "total_s": ..., "peak_rss_bytes": ...}.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Run = Callable[[int, int, int], tuple[float, float]]
"""(prompt tokens, new tokens, sequences) -> seconds to the first token of the first sequence, seconds to the end."""

PROMPT_TOKENS_AT_START = 32


def process_start() -> float:
    """When this process was started, on the clock of time.time()."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - (uptime - since_boot)


def prompt(tokens: int, sequence: int) -> list[int]:
    """Ids that differ between sequences, so that no prefix is shared."""
    return [10 + (7919 * sequence + 31 * index) % 4000 for index in range(tokens)]


def linnet(directory: str) -> Run:
    """The engine as `linnet serve` runs it: policy fast, default threads."""
    from linnet.api import LLM, SamplingParams

    llm = LLM(Path(directory), policy="fast", max_model_len=1024, kv_bytes=512 * 2**20, prefix_cache=False)

    def run(prompt_tokens: int, new_tokens: int, sequences: int) -> tuple[float, float]:
        prompts = [prompt(prompt_tokens, sequence) for sequence in range(sequences)]
        parameters = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        started = time.perf_counter()
        if sequences == 1:
            first = None
            for _ in llm.stream(prompts[0], parameters):
                first = first or time.perf_counter()
            return (first or started) - started, time.perf_counter() - started
        llm.generate(prompts, parameters)
        return float("nan"), time.perf_counter() - started

    return run


def transformers(directory: str) -> Run:
    """transformers, bf16, eager, static batch: what most people start from."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run(prompt_tokens: int, new_tokens: int, sequences: int) -> tuple[float, float]:
        ids = torch.tensor([prompt(prompt_tokens, sequence) for sequence in range(sequences)])
        started = time.perf_counter()
        output = model(ids, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        first = time.perf_counter() - started
        for _ in range(new_tokens - 1):
            output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
        return first, time.perf_counter() - started

    return run


def main() -> None:
    born = process_start()
    run = {"linnet": linnet, "transformers": transformers}[sys.argv[1]](sys.argv[2])
    run(PROMPT_TOKENS_AT_START, 1, 1)
    print(json.dumps({"first_token_s": time.time() - born}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        first, total = run(request["prompt"], request["new"], request["sequences"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"first_s": first, "total_s": total, "peak_rss_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
