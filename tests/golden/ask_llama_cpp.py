# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp does with files, asked in its own environment (llama-cpp-python). Writes one JSON object: an answer
for each file.

    path/to/llama_cpp/bin/python tests/golden/ask_llama_cpp.py QUESTIONS.json ANSWERS.json

A question is {"path": ..., "ids": [...]}. An answer is {"stage": "loaded", "logits": [one list per id]}, or the stage
that failed (``load``: opening the file; ``context``: making room for a sequence; ``run``: computing) and why, in
llama.cpp's own words. Keys and values are kept in F32 and attention is not fused, which would round them to F16: then
the choice of an expert can turn. Each file has a process of its own: llama.cpp ends its process where it did not expect
a file.
"""

import ctypes
import json
import multiprocessing
import os
import sys

os.environ["GGML_NO_BACKTRACE"] = "1"  # which it asks a debugger for when it ends its process

import llama_cpp

WORDS = ("error loading", "error", "failed", "invalid", "unsupported")
"""How a line begins to say what was wrong, the best first."""
log: list[str] = []


@llama_cpp.llama_log_callback
def remember(level, text, data):
    """Keeps what is said; of a piece of a line, too."""
    log.append(text.decode(errors="replace"))


def why():
    """The line of the log that says most."""
    lines = "".join(log).splitlines()
    return next((line for word in WORDS for line in lines if word in line.lower()), "".join(log)[-300:])


def logits(context, vocabulary, ids):
    """[ids, vocabulary] of one sequence, or None."""
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    if llama_cpp.llama_decode(context, batch):
        return None
    pointer = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return [[pointer[row * vocabulary + token] for token in range(vocabulary)] for row in range(len(ids))]


def answer(question, pipe):
    """One file, see above."""
    llama_cpp.llama_log_set(remember, None)
    stage, found = "load", None
    model = llama_cpp.llama_model_load_from_file(question["path"].encode(), llama_cpp.llama_model_default_params())
    if model:
        stage = "context"
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = 32
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = llama_cpp.llama_init_from_model(model, parameters)
        if context:
            stage = "run"
            pipe.send({"stage": stage, "why": "its process ended"})
            vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
            found = logits(context, vocabulary, question["ids"])
    pipe.send({"stage": stage, "why": why()} if found is None else {"stage": "loaded", "logits": found})


def asked(question):
    """The last thing that a process of its own says, or how it ended."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=answer, args=(question, there))
    process.start()
    there.close()
    said = {"stage": "load", "why": "its process ended"}
    try:
        while True:
            said = here.recv()
    except EOFError:
        process.join()
    return said


def main():
    """All questions."""
    with open(sys.argv[1], encoding="utf-8") as file:
        questions = json.load(file)
    multiprocessing.set_start_method("fork")
    answers = {name: asked(question) for name, question in questions.items()}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(answers, file, indent=1)


if __name__ == "__main__":
    main()
