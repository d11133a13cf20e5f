# SPDX-License-Identifier: Apache-2.0
"""From a Llama in a GGUF file to the Hugging Face directory it was made from: bf16, tokenizer, chat template.

transformers reads the file and dequantises it; what a GGUF does not say, or says in other words, is put right:
numbers that passed through float32 (1e-05 came out as 9.999999747378752e-06), the tokenizer's longest input, the ids
that end an answer. The weights are those of the file, rounded to bf16: what quantising them cost stays lost.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

MADE_FROM = "made_from.json"
"""Says in the directory what it was made from; another content there means that it must be made again."""
VERSION = 1
"""Counts changes of this file that change the directory."""

NOT_UPSTREAM = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "pretraining_tp")


def made_from(sha256: str) -> str:
    """The content of MADE_FROM for a GGUF file with this SHA-256."""
    return json.dumps({"gguf_sha256": sha256, "converter": VERSION}) + "\n"


def convert(gguf: Path, directory: Path) -> None:
    """Write ``directory``. Raises ImportError when transformers, torch, gguf or accelerate is not installed."""
    import accelerate as _loads  # noqa: F401  # transformers asks for these two only when it is half-way through
    import gguf as _reads  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kept = {name: value for name, value in read.config.to_dict().items() if name not in NOT_UPSTREAM}
    config = LlamaConfig(**_shortest(kept))
    state = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.bfloat16)
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _shortest(value: Any) -> Any:
    """Every float in ``value`` as the shortest decimal number that float32 does not tell from it."""
    if isinstance(value, dict):
        return {name: _shortest(entry) for name, entry in value.items()}
    return float(str(np.float32(value))) if isinstance(value, float) else value
