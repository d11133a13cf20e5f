# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU build, engine in this process, compiled unless ``eager`` is set; prefix cache off."""

import itertools
import os
import time


def open_model(path, settings):
    """Environment first: vLLM reads it when imported."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0))[: settings["threads"]])),
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        DO_NOT_TRACK="1",
    )
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=path,
        dtype="bfloat16",
        max_model_len=settings["context_tokens"],
        max_num_seqs=settings["max_sequences"],
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        enforce_eager=settings.get("eager", False),
        disable_log_stats=True,
    ).llm_engine
    numbers = itertools.count()

    def run(prompts, new):
        wanted = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        for prompt in prompts:
            engine.add_request(str(next(numbers)), {"prompt_token_ids": prompt}, wanted)
        waiting, first = len(prompts), None
        seen, done = set(), 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                seen.add(output.request_id)
                done += output.finished
                if output.finished and len(output.outputs[0].token_ids) != new:
                    raise SystemExit(f"vLLM generated {len(output.outputs[0].token_ids)} tokens instead of {new}")
            if first is None and len(seen) == waiting:
                first = time.perf_counter() - started
        if done != waiting:
            raise SystemExit(f"vLLM finished {done} of {waiting} requests")
        return first, time.perf_counter() - started

    return run
