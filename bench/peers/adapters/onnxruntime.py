# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime GenAI, token by token; without being told it takes one thread of two."""

import json
import time

import numpy as np
import onnxruntime_genai


def open_model(path, settings):
    """A static batch: all prompts have one length here."""
    config = onnxruntime_genai.Config(path)
    threads = {"intra_op_num_threads": settings["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = onnxruntime_genai.Model(config)

    def run(prompts, new):
        length = len(prompts[0]) + new + 1
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=length, min_length=length, batch_size=len(prompts), do_sample=False)
        ids = np.array(prompts, np.int32)
        started = time.perf_counter()
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(ids if len(prompts) > 1 else ids[0])
        generator.generate_next_token()
        first = time.perf_counter() - started
        for _ in range(new - 1):
            generator.generate_next_token()
        return first, time.perf_counter() - started

    return run
