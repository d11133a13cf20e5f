# SPDX-License-Identifier: Apache-2.0
"""What vLLM does with models, asked in its own environment: opens each with its own loader and multiplies by what it
loaded. Writes one JSON object: its version, the methods that it knows, the packages of its plugins, and an answer for
each model.

    path/to/vllm/bin/python tests/golden/ask_vllm.py QUESTIONS.json ANSWERS.json

A question is {"path": ..., "expected": WEIGHTS.npz or null, "deprecated": bool}, and "config" of GGUF files: the
directory of the original. WEIGHTS.npz holds, by module, the matrix [outputs, inputs] that each linear must multiply by,
and may hold gains and biases by the names of their tensors; codes of GGUF files are decoded by gguf, since the plugin's
kernels are for GPUs only. An answer is {"stage": "loaded", "worst": ...} or the stage that failed (``config``: what its
config says is refused; ``load``: building the model or filling it; ``run``: multiplying) and why.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import entry_points

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
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import get_model
from vllm.plugins import load_general_plugins

torch.accelerator.empty_cache = lambda: None  # as its CPU worker does: the loader calls it wherever it runs
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ROWS = 32


def product(module, x):
    """x times what a linear multiplies by, in fp32."""
    kinds = getattr(module, "qweight_type", None)  # of GGUF files alone
    if kinds is None:
        return module.quant_method.apply(module, x, None).float()
    codes, data = module.qweight, module.qweight.data.numpy()
    parts = getattr(codes, "shard_offset_map", None)
    if not parts:
        matrix = decoded(data, kinds.weight_type)
    else:
        order = ["q", "k", "v"] if "q" in codes.shard_id else codes.shard_id
        matrix = np.concatenate(
            [
                decoded(data[first:last, :size], kinds.shard_weight_type.get(part, kinds.weight_type))
                for part, (first, last, size) in ((part, parts[part]) for part in order)
            ]
        )
    return x.float() @ torch.from_numpy(matrix).T


def decoded(data, kind):
    """Blocks of GGUF's [rows, bytes] -> fp32."""
    import gguf

    return gguf.quants.dequantize(np.ascontiguousarray(data), gguf.GGMLQuantizationType(kind))


def worst_error(model, expected):
    """Of all linears: the norm of what x W' is off by, relative to it; and of gains and biases that are expected."""
    errors = [0.0]
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase | ParallelLMHead) or (name == "lm_head" and name not in expected):
            continue
        inside, _, last = name.rpartition(".")
        parts = [name] if name in expected else [f"{inside}.{part}" for part in FUSED.get(last, (last,))]
        weight = torch.from_numpy(np.concatenate([expected[part] for part in parts]))
        x = torch.randn(ROWS, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        found = product(module, x)[:, : len(weight)]  # a head has rows that nobody asks for
        right = x.float() @ weight.T
        errors.append(float((found - right).norm() / right.norm()))
    if "lm_head" in expected and not isinstance(getattr(model, "lm_head", None), ParallelLMHead):
        errors.append(float("inf"))  # tied to the embedding, where the original has both
    for name, value in model.named_parameters():
        if name in expected and value.dim() == 1:
            right = torch.from_numpy(expected[name])
            errors.append(float((value.float() - right).norm() / right.norm()))
    return max(error if error == error else float("inf") for error in errors)


def answer(question):
    """One model, see above."""
    stage = "config"
    try:
        original = question.get("config")
        of_gguf = {} if original is None else {"hf_config_path": original, "tokenizer": original}
        arguments = EngineArgs(
            **of_gguf,
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
    load_general_plugins()
    amx = bool(torch.cpu._is_amx_tile_supported())
    plugins = [entry.dist.name for entry in entry_points(group="vllm.general_plugins")]
    known = {"methods": list(QUANTIZATION_METHODS), "amx": amx, "plugins": plugins}
    found = {"version": vllm.__version__, **known, "answers": {}}
    for name, question in questions.items():
        found["answers"][name] = answer(question)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
