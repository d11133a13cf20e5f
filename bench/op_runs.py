# SPDX-License-Identifier: Apache-2.0
"""Programs opened to be timed op by op: an OpCase, a whole layer, sampling. The clock is the executor's own."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from conformance import CaseSource, OpCase, RandomSource, Steps
from limits import MachineLimits
from linnet.backends.cpu.backend import CpuBackend, CpuExecutable
from linnet.backends.cpu.tile_cache import TileCache
from linnet.backends.interface import KVCache, Policy, SamplingBatch
from linnet.models.build import build_program
from linnet.models.families import arch_spec
from linnet.program.program import Op, Program, WeightRef
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.presets import parse_scheme
from make_model import SHAPES, SHARED
from op_counts import Work, work

CACHE_BYTES = 128 << 20
MOST_TURNS = 512
LEAST_COLD_BYTES = 128 << 10
"""What is smaller stays in the caches in a model, too, or is too small to matter: one turn is enough."""
LEAST_SECONDS = 0.02
LAYER_SHAPE, LAYER_SCHEMES = "llama-3.2-1b", ("W4A16", "W8A8", "bf16")
LAYER_STEPS = (Steps(1, 511), Steps(16, 511, 16), Steps(512))
VOCABULARY = 128256


class Copy:
    """The weights of a source elsewhere in memory, under a name of their own among the tiles."""

    def __init__(self, original: RandomSource, place: Path) -> None:
        self.program, self._original, self._place = original.program, original, place
        place.mkdir()

    def weight(self, ref: WeightRef) -> np.ndarray | PackedWeight:
        """See backends.interface.Source."""
        stored = self._original.weight(ref)
        if isinstance(stored, PackedWeight):
            return replace(stored, arrays={name: array.copy() for name, array in stored.arrays.items()})
        return stored.copy()

    def stamp(self) -> tuple[str, str]:
        """See backends.interface.StampedSource."""
        return str(self._place), "random"

    def release(self) -> None:
        """See backends.interface.StampedSource: nothing here is a file's."""


@dataclass(frozen=True)
class TimedOp:
    """One op of a Timed: its kernels, and what a step asks of it."""

    name: str
    kernel: str
    work: Work


class Timed:
    """A Program whose weights, keys and values take turns. ``wanted``: which ops of the executed Program are timed.

    Each turn has KV memory and input rows of its own; weights have as many copies as it takes to leave the caches.
    """

    def __init__(
        self,
        name: str,
        source: RandomSource,
        steps: Steps,
        limits: MachineLimits,
        wanted: Callable[[Op, Program], bool],
        policy: Policy = "fast",
        kv_cache: KVCache = "auto",
    ) -> None:
        self.name = name
        folder = Path(tempfile.mkdtemp(prefix="linnet-ops-"))
        try:
            backend = CpuBackend(limits.threads, limits.isa, TileCache(folder / "tiles", least_bytes=1))

            def prepared(number: int) -> CpuExecutable:
                copied = Copy(source, folder / str(number))
                return backend.prepare(copied, policy, steps.limits(), kv_cache=kv_cache)

            first = prepared(0)
            self._indices, self.ops = self._timed_ops(first, source, steps, wanted)
            turns = _copies(sum(op.work.cold_bytes for op in self.ops))
            copies = min(turns, _copies(self._stored_bytes(first, source)))
            self._executables = [first, *(prepared(number) for number in range(1, copies))]
        finally:
            shutil.rmtree(folder)  # tiles stay mapped
        vocabulary = min(w.shape[0] for w in source.program.weights if w.name.startswith(("table", "embed")))
        self._turns = []
        for turn in range(turns):
            executable, states = self._executables[turn % copies], first.allocate_states(steps.num_blocks)
            if turn == 0:
                for batch in steps.filling(vocabulary):
                    first.execute(batch, states)
            else:
                states.memory[:] = self._turns[0][1].memory
            batch = steps.batch(vocabulary)
            batch.token_ids[:] = (batch.token_ids + turn * steps.rows) % vocabulary
            self._turns.append((executable, states, batch))
        for executable in self._executables:
            executable.set_profiling(True)
        self.seconds()

    def _stored_bytes(self, executable: CpuExecutable, source: RandomSource) -> int:
        """Of the weights that the timed ops read, whole."""
        names = {name for index in self._indices for name in executable.program.ops[index].weights}
        return sum(source.weight(weight.ref).nbytes for weight in executable.program.weights if weight.name in names)

    @staticmethod
    def _timed_ops(
        executable: CpuExecutable, source: RandomSource, steps: Steps, wanted: Callable[[Op, Program], bool]
    ) -> tuple[list[int], list[TimedOp]]:
        program = executable.program
        references = {weight.name: weight.ref for weight in program.weights}
        indices = [index for index, op in enumerate(program.ops) if wanted(op, program)]
        ops = []
        for op in (program.ops[index] for index in indices):
            chosen = (executable.choices[one.name] for one in op.expansion or (op,))
            kernels = dict.fromkeys(name.removesuffix(f"_{executable.isa}") for name in chosen)
            counted = work(op, program, steps, lambda name: source.weight(references[name]).nbytes)
            ops.append(TimedOp(op.name.removeprefix("layers.0."), "+".join(kernels), counted))
        return indices, ops

    def seconds(self) -> list[float]:
        """Of each op in one step, over whole rounds through the turns."""
        started, rounds = time.perf_counter(), 0
        while not rounds or time.perf_counter() - started < LEAST_SECONDS:
            for executable, states, batch in self._turns:
                executable.execute(batch, states)
            rounds += 1
        totals = np.zeros(len(self._indices))
        for executable in self._executables:
            spent = [seconds for _, seconds in executable.profile()]
            totals += [spent[index] for index in self._indices]
        return [float(total) for total in totals / rounds / len(self._turns)]


def _copies(nbytes: int) -> int:
    """How many of something leave the caches when they take turns."""
    return min(MOST_TURNS, -(-CACHE_BYTES // nbytes)) if nbytes >= LEAST_COLD_BYTES else 1


def op_case(case: OpCase, limits: MachineLimits) -> Timed:
    """The op a case is about, alone."""

    def is_it(op: Op, program: Program) -> bool:
        return op.kind == case.kind and (op.kind != "embed" or op.outputs == ("x",)) and op.name != "rows"

    return Timed(case.name, CaseSource(case), case.steps, limits, is_it, case.policy, case.kv_cache)


def layers(limits: MachineLimits, only: str) -> Iterator[Timed]:
    """The first of two layers of the 1B shape as the model's Program has it: what is fused is timed as one op.

    Not the last one, which is spared the rows whose logits nobody wants (``gather_early``).
    """
    config = SHAPES[LAYER_SHAPE] | SHARED | {"num_hidden_layers": 2, "vocab_size": 4096}
    for scheme in LAYER_SCHEMES:
        linear = scheme if scheme == "bf16" else parse_scheme(scheme).linear
        program = build_program(
            arch_spec(config, None), lambda tensor, linear=linear: linear if "proj" in tensor else "bf16"
        )
        source = RandomSource(program, f"layer-{scheme}")
        for steps in LAYER_STEPS:
            name = f"layer-{scheme}-m{steps.rows}{steps.suffix}"
            if only in name:
                yield Timed(name, source, steps, limits, _in_block)


def _in_block(op: Op, program: Program) -> bool:
    block = next(segment for segment in program.segments if segment.kind == "block")
    return op in program.ops[block.start : block.stop]


class TimedSampling:
    """Draws from the logits of one step; they are where the projection just put them, in the caches."""

    def __init__(self, name: str, rows: int, temperature: float, top_p: float, limits: MachineLimits) -> None:
        self.name = name
        case = OpCase("gather", rows, VOCABULARY)
        self._executable = CpuBackend(limits.threads, limits.isa).prepare(CaseSource(case), "fast", case.limits())
        self._executable.execute(case.batch(), self._executable.allocate_states(case.steps.num_blocks))
        self._batch = SamplingBatch.greedy(range(rows))
        self._batch.temperature[:], self._batch.top_p[:] = temperature, top_p
        self.ops = [TimedOp("sample", "sample", Work(0, rows * VOCABULARY * 4))]
        self.seconds()

    def seconds(self) -> list[float]:
        """Of one call."""
        started, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started < LEAST_SECONDS:
            self._executable.sample(self._batch)
            calls += 1
        return [(time.perf_counter() - started) / calls]


def sampling(limits: MachineLimits, only: str) -> Iterator[TimedSampling]:
    """Greedy, and what a chat asks for."""
    kinds: Sequence[tuple[str, float, float]] = (("greedy", 0.0, 1.0), ("top_p", 0.8, 0.95))
    for kind, temperature, top_p in kinds:
        for rows in (1, 16):
            name = f"sample-{kind}-{VOCABULARY}-m{rows}"
            if only in name:
                yield TimedSampling(name, rows, temperature, top_p, limits)
