# SPDX-License-Identifier: Apache-2.0
"""Dynamic sparsity of the gated feed-forward against static: what is skipped per token, by threshold, and what it
costs.

    python bench/dynamic_sparsity.py src/linnet/demo/model --calibration src/linnet/demo/calibration.txt \
        --foreign src/linnet/demo/heldout.txt

Two published criteria, training-free. ``gate`` (CATS, Lee et al. 2024): a neuron is skipped for a token where
|activation(gate)| is below its layer's threshold; up and down need not be read there. ``product`` (TEAL, Liu et al.
2024, on down's input): where |activation(gate) * up| is; only down need not be. Thresholds are quantiles over
calibration rows, one a layer, so that the share asked for is skipped there. Beside them what is the same for every
token: as many neurons fewer, by ``prune`` (wanda). ``of 16``: neurons that none of 16 tokens of different sequences at
one position needs, what a batch could skip. The PyTorch reference multiplies by masks: this measures quality and bytes,
no speed, and no kernel here skips rows.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from linnet.backends.reference import ops
from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.sampling import score
from linnet.backends.reference.weights import WeightTable
from linnet.compress import compress, recipe_from
from linnet.models.load import ModelSource, load_model
from linnet.program.attributes import Gate
from linnet.text.files import read_corpus
from linnet.text.rows import calibration_rows
from linnet.text.tokenizer import Tokenizer

BATCH = 16
Changed = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(place of the gate among the gates, activation(gate), product) -> what down reads."""


@torch.no_grad()
def run(model: ModelSource, ids: np.ndarray, change: Changed) -> np.ndarray:
    """Logits [tokens, vocabulary] of whole sequences, what every gate makes passed through ``change``."""
    program, stop = model.program, len(model.program.ops)
    table, memory = WeightTable(program, model), FunctionalMemory.of(program)
    values = dict(whole_sequence_inputs(torch.from_numpy(ids)))
    given, start = set(values), 0
    gates = [place for place, op in enumerate(program.ops) if op.kind == "gate"]
    for number, place in enumerate(gates):
        gate = program.ops[place]
        assert isinstance(gate.attributes, Gate)
        later = {name for op in program.ops[place + 1 :] for name in op.inputs}
        made = {name for op in program.ops[start : place + 1] for name in op.outputs}
        wanted = ({*made, *values} & {*later, *gate.inputs}) - given
        found = run_ops(program, start, place + 1, values, wanted | {gate.outputs[0]}, table, memory)
        activated = ops.gate(found[gate.inputs[0]], None, gate.attributes)
        product = found[gate.outputs[0]]
        values = {name: values[name] for name in given} | {name: each for name, each in found.items() if name in later}
        values[gate.outputs[0]] = change(number, activated, product)
        start = place + 1
    return run_ops(program, start, stop, values, ("logits",), table, memory)["logits"].numpy()


@dataclass
class Skipper:
    """Skips what is below a threshold a layer, and counts."""

    criterion: str
    thresholds: list[float]
    length: int
    skipped: list[float] = field(default_factory=list)
    by_all: list[float] = field(default_factory=list)

    def __call__(self, number: int, activated: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        needed = (activated if self.criterion == "gate" else product).abs() > self.thresholds[number]
        self.skipped.append(1 - float(needed.float().mean()))
        together = needed.view(-1, self.length, needed.shape[1])[:BATCH]  # tokens at one position of a batch
        self.by_all.append(float((~together.any(dim=0)).float().mean()))
        return product * needed


def thresholds(model: ModelSource, ids: np.ndarray, criterion: str, shares: list[float]) -> dict[float, list[float]]:
    """Share -> the threshold of every layer below which so many values lie on these rows."""
    found: dict[float, list[float]] = {share: [] for share in shares}

    def look(number: int, activated: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        sizes = (activated if criterion == "gate" else product).abs().flatten().numpy()
        for share in shares:
            found[share].append(float(np.quantile(sizes, share)))
        return product

    run(model, ids, look)
    return found


def results(options: argparse.Namespace) -> Iterator[tuple[str, float, float, float]]:
    """(what is skipped, KL, share of the feed-forward's bytes not read for one token, for a batch)."""
    model = load_model(options.model)
    tokenizer = Tokenizer.from_directory(options.model)
    seen, unseen = (
        calibration_rows(tokenizer, read_corpus(path), rows, options.length, 1).token_ids
        for path, rows in ((options.calibration, options.rows), (options.foreign, BATCH))
    )
    reference = run(model, unseen, lambda _, activated, product: product)
    index = np.arange(len(reference), dtype=np.int32)

    def cost(logits: np.ndarray) -> float:
        return float(score(logits, index, np.zeros(len(index), np.int32), reference).kl.mean())

    for criterion, tensors in (("gate", 2 / 3), ("product", 1 / 3)):
        for share, limits in thresholds(model, seen, criterion, options.shares).items():
            skipper = Skipper(criterion, limits, options.length)
            kl = cost(run(model, unseen, skipper))
            own, batch = (float(np.mean(each)) for each in (skipper.skipped, skipper.by_all))
            yield f"dynamic, {share:.0%} by {criterion}", kl, own * tensors, batch * tensors
    for share in options.shares:
        step = {"step": "prune", "algorithm": "wanda", "options": {"what": "neurons", "ratio": share, "multiple": 16}}
        recipe = recipe_from(
            {
                "steps": [step],
                "calibration": str(options.calibration),
                "calibration_rows": options.rows,
                "calibration_length": options.length,
            }
        )
        target = options.work / f"{options.model.name}-{share}"
        pruned = load_model(compress(options.model, target, recipe, overwrite=True).path)
        left = pruned.spec.layers[0].feed_forward.up.outputs / model.spec.layers[0].feed_forward.up.outputs
        kl = cost(run(pruned, unseen, lambda _, activated, product: product))
        yield f"static, {1 - left:.0%} of the neurons", kl, 1 - left, 1 - left


def main() -> None:
    """Measure, print one line a result."""
    options = _arguments()
    print(f"| {options.model.name} | KL (nats/token) | feed-forward bytes not read | ... by a batch of {BATCH} |")
    print("|---|---|---|---|", flush=True)
    for name, kl, alone, batch in results(options):
        print(f"| {name} | {kl:.4f} | {alone:.0%} | {batch:.1%} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, metavar="FILE")
    parser.add_argument("--foreign", type=Path, required=True, metavar="FILE", help="text to measure on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path("scratch/dynamic"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
