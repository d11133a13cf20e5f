# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through llama-cpp-python's low-level interface: one batch a step, as its own batched bench does."""

import ctypes
import time

import llama_cpp
import numpy as np


def open_model(path, settings):
    """Mapped GGUF, default repacking, default micro-batch (512)."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    sequences = settings["max_sequences"]
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = settings["context_tokens"] * sequences
    parameters.n_batch = 2048
    parameters.n_seq_max = sequences
    parameters.n_threads = parameters.n_threads_batch = settings["threads"]
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise SystemExit(f"llama.cpp cannot make a context of {parameters.n_ctx} tokens")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)

    def decode(rows):
        """rows: (token, position, sequence, wanted) of one batch."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")

    def greedy(row):
        pointer = llama_cpp.llama_get_logits_ith(context, row)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (vocabulary,)).argmax())

    def run(prompts, new):
        llama_cpp.llama_memory_clear(memory, False)
        started = time.perf_counter()
        rows, tokens = [], [0] * len(prompts)

        def flush():
            decode(rows)
            for row, (_, _, sequence, wanted) in enumerate(rows):
                if wanted:
                    tokens[sequence] = greedy(row)
            rows.clear()

        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                rows.append((token, position, sequence, position + 1 == len(prompt)))
                if len(rows) == parameters.n_batch:
                    flush()
        if rows:
            flush()
        first = time.perf_counter() - started
        for step in range(new - 1):
            decode([(token, len(prompts[s]) + step, s, True) for s, token in enumerate(tokens)])
            tokens[:] = [greedy(row) for row in range(len(tokens))]
        return first, time.perf_counter() - started

    return run
