# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI: its continuous-batching pipeline, stepped from here; prefix cache off (prompts never repeat)."""

import time

import numpy as np
import openvino
import openvino_genai


def open_model(path, settings):
    """The KV pool is given in whole gigabytes; one holds 16 sequences of 2,048 tokens of the shapes measured."""
    config = openvino_genai.SchedulerConfig()
    config.cache_size = 1
    config.max_num_seqs = settings["max_sequences"]
    config.max_num_batched_tokens = max(2048, settings["context_tokens"])
    config.enable_prefix_caching = False
    config.dynamic_split_fuse = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        path, config, "CPU", {"INFERENCE_NUM_THREADS": settings["threads"]}
    )
    numbers = iter(range(1 << 62))

    def run(prompts, new):
        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens = wanted.min_new_tokens = new
        wanted.ignore_eos, wanted.do_sample, wanted.apply_chat_template = True, False, False
        tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        started = time.perf_counter()
        handles = [pipeline.add_request(next(numbers), tensor, wanted) for tensor in tensors]
        counts, first = [0] * len(prompts), None
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    counts[index] += sum(len(output.generated_ids) for output in handle.read().values())
            if first is None and all(counts):
                first = time.perf_counter() - started
        total = time.perf_counter() - started
        if counts != [new] * len(prompts):
            raise SystemExit(f"OpenVINO generated {counts} tokens instead of {new} each")
        return first, total

    return run
