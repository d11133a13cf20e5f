# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's logits at every position of every row of ids; runs in its environment.

scratch/peers/llama_cpp/bin/python bench/peers/llama_logits.py MODEL.gguf ROWS.npy LOGITS.npy
"""

import ctypes
import sys

import llama_cpp
import numpy as np


def main():
    """float32 [rows, tokens, vocabulary]."""
    path, rows, target = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    count, length = rows.shape
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = length
    context = llama_cpp.llama_init_from_model(model, parameters)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(length, 0, 1)
    logits = np.lib.format.open_memmap(target, "w+", np.float32, (count, length, vocabulary))
    for number, row in enumerate(rows):
        llama_cpp.llama_memory_clear(memory, True)
        batch.n_tokens = length
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")
        pointer = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        logits[number] = np.ctypeslib.as_array(pointer, (length, vocabulary))
    logits.flush()


if __name__ == "__main__":
    main()
