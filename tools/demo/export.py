# SPDX-License-Identifier: Apache-2.0
"""Writes the published model directory from a checkpoint, and checks it against transformers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import Shape, SmallLlama
from safetensors.torch import save_file
from small_world.mix import LONG_SHARES, SHORT_SHARES
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from vocabulary import stop_ids, write_tokenizer

GENERATOR_VERSION = 1
LARGEST_DIFFERENCE = 1e-3


def main() -> None:
    """Export, check, and describe the model in about.json beside its directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="work directory of train.py")
    parser.add_argument("out", type=Path, help="directory that gets model/ and about.json")
    options = parser.parse_args()
    directory = options.out / "model"
    state = torch.load(options.work / "checkpoint.pt", weights_only=True)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    write_tokenizer(tokenizer, directory, shape.context_tokens)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state["model"].items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes files only their owner may read; what is published is for everybody.
    (directory / "model.safetensors").chmod(0o644)
    stops = stop_ids(tokenizer)
    write_json(directory / "config.json", shape.config(stops[0]))
    write_json(directory / "generation_config.json", {"eos_token_id": stops, "pad_token_id": stops[0]})
    difference = compare(directory, tensors, shape)
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"logits differ from transformers by {difference}, allowed is {LARGEST_DIFFERENCE}")
    write_json(
        options.out / "about.json",
        {
            "generator_version": GENERATOR_VERSION,
            "seed": state["seed"],
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "steps": state["step"],
            "training_tokens": state["tokens"],
            "training_seconds": round(state["spent_s"]),
            "shares_short_rows": SHORT_SHARES,
            "shares_long_rows": LONG_SHARES,
        },
    )
    print(f"{directory}: largest difference of logits from transformers {difference:.1e}")


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def compare(directory: Path, tensors: dict[str, torch.Tensor], shape: Shape) -> float:
    """Return the largest difference between our logits and those of transformers, both in fp32."""
    ours = SmallLlama(shape)
    ours.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.randint(shape.vocabulary, (2, 400), generator=torch.Generator().manual_seed(0))
    return (ours(ids) - theirs(ids).logits).abs().max().item()


if __name__ == "__main__":
    main()
