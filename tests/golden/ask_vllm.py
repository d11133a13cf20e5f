# SPDX-License-Identifier: Apache-2.0
"""What vLLM does with models, asked in its own environment: opens each with its own loader and multiplies by what it
loaded. Writes one JSON object: its version, the methods that it knows, and an answer for each model.

    path/to/vllm/bin/python tests/golden/ask_vllm.py QUESTIONS.json ANSWERS.json

A question is {"path": ..., "expected": WEIGHTS.npz or null, "deprecated": bool}; WEIGHTS.npz holds, by module, the
matrix [outputs, inputs] that each linear must multiply by. An answer is {"stage": "loaded", "worst": ...} or the stage
that failed (``config``: what its config says is refused; ``load``: building the model or filling it; ``run``:
multiplying) and why.
"""

import json
import os
import sys
import tempfile

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="1",
)

import numpy as np
import torch
import vllm
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.model_loader import get_model

torch.accelerator.empty_cache = lambda: None  # as its CPU worker does: the loader calls it wherever it runs
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ROWS = 32


def worst_error(model, expected):
    """Of all linears: the norm of what x W' is off by, relative to it."""
    worst = 0.0
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase):
            continue
        inside, _, last = name.rpartition(".")
        parts = [f"{inside}.{part}" for part in FUSED.get(last, (last,))]
        weight = torch.from_numpy(np.concatenate([expected[part] for part in parts]))
        x = torch.randn(ROWS, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        found = module.quant_method.apply(module, x, None).float()
        right = x.float() @ weight.T
        error = float((found - right).norm() / right.norm())
        worst = max(worst, error if error == error else float("inf"))
    return worst


def answer(question):
    """One model, see above."""
    stage = "config"
    try:
        arguments = EngineArgs(
            model=question["path"],
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=64,
            enforce_eager=True,
            allow_deprecated_quantization=question["deprecated"],
        )
        config = arguments.create_engine_config()
        stage = "load"
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                store = tempfile.mktemp()
                init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
                initialize_model_parallel(1, 1)
            model = get_model(vllm_config=config)
            expected = question["expected"]
            stage = "run"
            worst = None if expected is None else worst_error(model, np.load(expected))
    except (Exception, SystemExit) as error:  # a pydantic error, a missing operator, an assertion: all are answers
        return {"stage": stage, "why": f"{type(error).__name__}: {error}"[:2000]}
    return {"stage": "loaded", "worst": worst}


def main():
    """All questions in one process, since starting vLLM takes the longest."""
    with open(sys.argv[1], encoding="utf-8") as file:
        questions = json.load(file)
    amx = bool(torch.cpu._is_amx_tile_supported())
    found = {"version": vllm.__version__, "methods": list(QUANTIZATION_METHODS), "amx": amx, "answers": {}}
    for name, question in questions.items():
        found["answers"][name] = answer(question)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
