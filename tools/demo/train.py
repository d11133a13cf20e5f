# SPDX-License-Identifier: Apache-2.0
"""Trains the bundled model on the small world; seeded, resumable, meant to run in the background.

Order of side effects: the tokenizer is trained (or found in the work directory), steps follow, a checkpoint is
written every few minutes and at the end. `export.py` makes the published model directory from a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from model import Shape, SmallLlama
from rows import Rows
from small_world.mix import LONG_SHARES, LOOK_BACK_SHARES, SHORT_SHARES
from small_world.prose import Prose
from small_world.world import make_world
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from vocabulary import train_tokenizer

SHORT_TOKENS, LONG_TOKENS = 256, 512
TOKENS_PER_STEP = 8_192
STEPS_PER_CHUNK = 48
WARMUP_STEPS = 60
DECAY_FRACTION = 0.2
MATRIX_RATE, OTHER_RATE = 2.5e-3, 3e-3


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory for tokenizer and checkpoint")
    parser.add_argument("--text", type=Path, help="directory with the public-domain prose")
    parser.add_argument("--steps", type=int, default=4_000, help=f"steps of {TOKENS_PER_STEP} tokens")
    parser.add_argument("--look-back-steps", type=int, default=480, help="steps of the opening lesson")
    parser.add_argument("--long-every", type=int, default=4, help="every how many steps after it the rows are long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every-s", type=float, default=240.0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the work directory")
    return parser.parse_args()


def batches(
    look_back: Rows, short: Rows, long: Rows, first_step: int, look_back_steps: int, long_every: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, weights) from `first_step` on; the first step must begin a chunk."""
    chunk = first_step // STEPS_PER_CHUNK
    while True:
        opening = chunk * STEPS_PER_CHUNK < look_back_steps
        long_steps = [not opening and step % long_every == 0 for step in range(STEPS_PER_CHUNK)]
        short_steps = STEPS_PER_CHUNK - sum(long_steps)
        short_rows = (look_back if opening else short).chunk(chunk, short_steps, TOKENS_PER_STEP // SHORT_TOKENS)
        long_rows = long.chunk(chunk, sum(long_steps), TOKENS_PER_STEP // LONG_TOKENS)
        for is_long in long_steps:
            ids, weights = next(long_rows if is_long else short_rows)
            yield torch.from_numpy(ids), torch.from_numpy(weights)
        chunk += 1


def make_optimisers(model: SmallLlama) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    matrices = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and "layers" in name]
    others = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 1 or "layers" not in name]
    return (
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    )


def rate_factor(step: int, steps: int) -> float:
    """Return the schedule: warm up, stay, fall linearly to zero over the last `DECAY_FRACTION` of all steps."""
    decay_steps = max(1, int(steps * DECAY_FRACTION))
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / decay_steps)


def weighted_loss(model: SmallLlama, ids: Tensor, weights: Tensor, separator: int | None) -> Tensor:
    """Return the mean cross entropy in nats of ids [rows, tokens + 1], each target token by its weight."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1], separator)
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint in one rename."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def main() -> None:
    """Train until all steps are done."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    world, prose = make_world(options.seed), Prose(options.text)
    tokenizer_path = options.work / "tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer(world, prose).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    model = SmallLlama(Shape(vocabulary=tokenizer.get_vocab_size()))
    optimisers = make_optimisers(model)
    checkpoint = options.work / "checkpoint.pt"
    step, spent_s = 0, 0.0
    if options.resume:
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, spent_s = state["step"], state["spent_s"]
    compiled = torch.compile(weighted_loss, dynamic=False)
    look_back = Rows(world, prose, tokenizer, SHORT_TOKENS, options.seed, LOOK_BACK_SHARES)
    short = Rows(world, prose, tokenizer, SHORT_TOKENS, options.seed, SHORT_SHARES)
    long = Rows(world, prose, tokenizer, LONG_TOKENS, options.seed, LONG_SHARES)
    rows = batches(look_back, short, long, step, options.look_back_steps, options.long_every)
    began_s = saved_s = time.monotonic()
    mean_loss = None
    while step < options.steps:
        factor = rate_factor(step, options.steps)
        for optimiser, rate in zip(optimisers, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
        ids, weights = next(rows)
        # Short rows hold many questions, and none may peek at its neighbours; a long row is one document or two.
        loss = compiled(model, ids, weights, short.separator if ids.shape[1] == SHORT_TOKENS + 1 else None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        now_s = time.monotonic()
        mean_loss = loss.item() if mean_loss is None else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 20 == 0:
            elapsed_s = spent_s + now_s - began_s
            print(f"step {step}  loss {mean_loss:.4f}  rate {factor:.3f}  {elapsed_s:.0f} s", flush=True)
        # Only a whole chunk can be resumed: what is inside one is not stored.
        if step == options.steps or (step % STEPS_PER_CHUNK == 0 and now_s - saved_s > options.save_every_s):
            saved_s = now_s
            save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    "step": step,
                    "tokens": step * TOKENS_PER_STEP,
                    "spent_s": spent_s + now_s - began_s,
                    "seed": options.seed,
                },
            )


if __name__ == "__main__":
    main()
