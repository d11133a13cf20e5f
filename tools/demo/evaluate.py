# SPDX-License-Identifier: Apache-2.0
"""Quick look at a model directory: accuracy per ability and perplexity, optionally after simulated quantisation.

An exact answer counts when greedy decoding would write it and then stop, which one forward pass over the prompt with
the expected answer shows. The evaluation room of the package measures the same through the engine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 32
DEMO = Path(__file__).resolve().parents[2] / "src" / "linnet" / "demo"


def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Return the symmetric round-to-nearest image of a matrix; groups lie along the inputs."""
    largest = 2 ** (bits - 1)
    groups = weight.float().reshape(weight.shape[0], -1, group_size)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / (largest - 0.5)).clamp_min(1e-10)
    codes = (groups / scale).round().clamp(-largest, largest - 1)
    return (codes * scale).reshape(weight.shape).to(weight.dtype)


def quantise(model: torch.nn.Module, bits: int, group_size: int) -> None:
    """Quantise every linear of the layers in place; embedding and head stay as they are."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            parameter.data = round_to_nearest(parameter.data, bits, group_size or parameter.shape[1])


def log_probabilities(model: torch.nn.Module, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    """Score (ids, first scored position) pairs: summed log-probability, and whether greedy decoding agrees."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    scored: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(rows[index][0]) for index in part)
        ids = torch.tensor([rows[index][0] + [0] * (longest - len(rows[index][0])) for index in part])
        logits = model(ids).logits.float()
        for line, index in enumerate(part):
            row, first = rows[index]
            targets = ids[line, first : len(row)]
            predicted = logits[line, first - 1 : len(row) - 1]
            chosen = functional.log_softmax(predicted, dim=-1).gather(1, targets[:, None]).sum().item()
            scored[index] = chosen, bool((predicted.argmax(-1) == targets).all())
    return [scored[index] for index in range(len(rows))]


def ask(model: torch.nn.Module, tokenizer: AutoTokenizer, questions: list[dict]) -> dict[str, list[bool]]:
    """Return for each ability which questions were answered right, in order."""
    rows, owners = [], []
    for number, entry in enumerate(questions):
        chat = "messages" in entry
        prompt = (
            tokenizer.apply_chat_template(entry["messages"], tokenize=False, add_generation_prompt=True)
            if chat
            else entry["prompt"]
        )
        space, stop = ("", "<|end|>") if chat else (" ", "\n")
        answers = entry.get("choices") or [f"{space}{entry['answer']}{stop}"]
        first = len(tokenizer.encode(prompt))
        for answer in answers:
            rows.append((tokenizer.encode(prompt + answer), first))
            owners.append(number)
    scores: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for owner, score in zip(owners, log_probabilities(model, rows), strict=True):
        scores[owner].append(score)
    right: dict[str, list[bool]] = defaultdict(list)
    for number, entry in enumerate(questions):
        values = [value for value, _ in scores[number]]
        correct = values.index(max(values)) == entry["answer"] if entry["kind"] == "choice" else scores[number][0][1]
        right[entry["ability"]].append(correct)
    return right


def perplexity(model: torch.nn.Module, tokenizer: AutoTokenizer, texts: list[str]) -> float:
    """Return the perplexity of texts, each on its own; the first token of a text is not scored."""
    rows = [(tokenizer.encode(text), 1) for text in texts]
    total = sum(value for value, _ in log_probabilities(model, rows))
    return math.exp(-total / sum(len(ids) - 1 for ids, _ in rows))


def main() -> None:
    """Print one line per ability."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=DEMO / "model")
    parser.add_argument("--questions", type=Path, default=DEMO / "questions.jsonl")
    parser.add_argument("--heldout", type=Path, default=DEMO / "heldout.txt")
    parser.add_argument("--bits", type=int, help="simulate round-to-nearest weights of so many bits")
    parser.add_argument("--group-size", type=int, default=0, help="inputs that share a scale; 0: a whole row")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    if options.bits:
        quantise(model, options.bits, options.group_size)
    questions = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    with torch.inference_mode():
        for ability, right in ask(model, tokenizer, questions).items():
            print(f"{ability:12} {100 * sum(right) / len(right):5.1f} %  of {len(right)}")
        texts = options.heldout.read_text(encoding="utf-8").split("---\n")
        print(f"{'perplexity':12} {perplexity(model, tokenizer, texts):.3f}")


if __name__ == "__main__":
    main()
