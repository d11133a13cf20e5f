# SPDX-License-Identifier: Apache-2.0
"""transformers, bf16, eager, static batch: what most people start from."""

import time

import torch
from transformers import AutoModelForCausalLM


def open_model(path, settings):
    """All prompts have one length here, so no padding is needed."""
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run(prompts, new):
        ids = torch.tensor(prompts)
        started = time.perf_counter()
        output = model(ids, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        first = time.perf_counter() - started
        for _ in range(new - 1):
            output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
        return first, time.perf_counter() - started

    return run
