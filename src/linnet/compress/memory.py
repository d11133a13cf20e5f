# SPDX-License-Identifier: Apache-2.0
"""How much memory a compression will need, predicted from shapes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from linnet.backends.reference.attention import TILE_ROWS
from linnet.models.inventory import LinearInfo
from linnet.process_memory import resident_bytes
from linnet.program.attributes import Attention
from linnet.program.plan_buffers import plan_buffers
from linnet.program.traverse import tapped
from linnet.schemes.scheme import LinearScheme

if TYPE_CHECKING:
    from linnet.compress.steps import Steps
    from linnet.models.load import ModelSource

ROUNDED_BYTES = 3
"""At most, of a weight rounded to nearest: its code, without a sign, and packed (of eight bits that is no other)."""

GROWTH_BYTES = 64 << 20
"""What the process grows by beside what is counted: pages of torch, thread stacks, holes in the heap."""


@dataclass(frozen=True)
class Prediction:
    """Bytes. ``base``: what the process has before the work; ``block``: fp32 weights of the largest block and its
    source pages; ``statistics``: of its taps; ``fit``: the most expensive fit; ``activations``: one chunk through a
    block; ``table``: the dearest tensor outside the blocks, as it is copied, rounded or fitted."""

    base: int
    block: int
    statistics: int
    fit: int
    activations: int
    table: int

    @property
    def total(self) -> int:
        """Fitting and running never coincide, blocks and tables neither."""
        return self.base + max(self.block + self.statistics + max(self.fit, self.activations), self.table)

    @property
    def least(self) -> int:
        """What a run surely takes, whatever the rest turns out to be: one block shows that (preflight.py)."""
        return self.base - GROWTH_BYTES + self.block + self.statistics

    def describe(self) -> str:
        """One line for a person."""
        parts = ("base", "block", "statistics", "fit", "activations", "table")
        return ", ".join(f"{name} {getattr(self, name) / 2**20:.0f}" for name in parts)


def predict(
    model: "ModelSource",
    steps: "Steps",
    schemes: Mapping[str, LinearScheme],
    linears: tuple[LinearInfo, ...],
    embedding: str,
    length: int,
    chunk_tokens: int,
) -> Prediction:
    """``length`` of the calibration rows in tokens, 0 if there are none."""
    program = model.program
    changed = [info for info in linears if steps.changes(info.module)]
    chosen = [info for info in changed if program.segments[info.segment].kind == "block"]
    fit = max(_fit_bytes(steps, chosen), _smoothing_bytes(steps, chosen))
    block = statistics = 0
    weights = {weight.name: weight for weight in program.weights}
    base = resident_bytes() + GROWTH_BYTES
    outside = [info for info in changed if program.segments[info.segment].kind != "block"]
    table = _table_bytes(model, steps, embedding, schemes.get(embedding), outside)
    for index, segment in enumerate(program.segments):
        if segment.kind == "block":
            names = {name for op in program.ops[segment.start : segment.stop] for name in op.weights}
            block = max(block, 6 * sum(prod(weights[name].shape) for name in names))
        infos = [info for info in chosen if info.segment == index]
        statistics = max(statistics, _statistics_bytes(steps, infos))
    if length == 0:
        return Prediction(base, block, 0, fit, 0, table)
    sequences = max(1, chunk_tokens // length)
    bounds = {"tokens": sequences * length, "sequences": sequences, "sequences_plus_one": sequences + 1}
    arena = plan_buffers(program, bounds | {"blocks": 1, "outputs": 1}).arena_bytes
    heads = max((op.attributes.heads for op in program.ops if isinstance(op.attributes, Attention)), default=0)
    scores = 4 * sequences * heads * min(length, TILE_ROWS) * length * 4  # scores, mask, softmax and its copy
    activations = 2 * arena + scores
    # a fit of a whole block runs it, once and once more for the gradients
    return Prediction(base, block, statistics, fit + 2 * activations * steps.fits_blocks, activations, table)


def _table_bytes(
    model: "ModelSource", steps: "Steps", embedding: str, scheme: LinearScheme | None, linears: Sequence[LinearInfo]
) -> int:
    """Of the embedding and the head: pages of the source and what is made of them. ``scheme``: into which the embedding
    is rounded, from the type of the source."""
    checkpoint, found = model.checkpoint, [0]
    for module in {embedding, model.spec.head or embedding}:
        if f"{module}.weight" in checkpoint:
            info = checkpoint.info(f"{module}.weight")
            each = 0 if scheme is None or module != embedding else ROUNDED_BYTES - (scheme.weight.bits == 8)
            found.append(info.nbytes + each * prod(info.shape))
    for linear in linears:
        fitted = steps.fit_bytes(linear.module, linear.shape) + _statistics_bytes(steps, [linear])
        found.append(prod(linear.shape) * 6 + fitted)
    return max(found)


def _fit_bytes(steps: "Steps", infos: Sequence[LinearInfo]) -> int:
    """Of the dearest linear, or of the dearest block where its linears are fitted together."""
    by_segment: dict[int, list[int]] = {}
    for info in infos:
        by_segment.setdefault(info.segment, []).append(steps.fit_bytes(info.module, info.shape))
    return max((sum(own) if steps.fits_blocks else max(own) for own in by_segment.values()), default=0)


def _statistics_bytes(steps: "Steps", infos: Sequence[LinearInfo]) -> int:
    """Of the one tap that a fit looks at, or of all that a transform or a fit of the whole block does."""
    by_tap = {info.tap: info for info in infos}.values()
    of_value: dict[str, int] = {}  # experts that read one are looked at together
    for info in by_tap:
        own = sum(kind.bytes_of(info.shape[1]) for kind in steps.statistics_of(info.module).values())
        of_value[tapped(info.tap)] = of_value.get(tapped(info.tap), 0) + own
    fitted = list(of_value.values())
    if steps.fits_blocks:
        fitted = [sum(fitted)]
    smoothed = [
        sum(kind.bytes_of(info.shape[1]) for info in by_tap for kind in transform.of(info.module).statistics.values())
        for transform in steps.block_transforms
    ]
    return max([*fitted, *smoothed], default=0)


def _smoothing_bytes(steps: "Steps", infos: Sequence[LinearInfo]) -> int:
    """Of the dearest value that a transform could smooth."""
    rows: dict[str, int] = {}
    for info in infos:
        rows[info.tap] = rows.get(info.tap, 0) + info.shape[0]
    return max(
        (
            step.of(info.module).apply_bytes((rows[info.tap], info.shape[1]))
            for step in steps.block_transforms
            for info in infos
        ),
        default=0,
    )
