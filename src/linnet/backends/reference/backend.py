# SPDX-License-Identifier: Apache-2.0
"""The reference backend behind the common door: every op in torch, slow and plain; the others are compared with it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from linnet.backends import block_memory
from linnet.backends.interface import (
    Batch,
    Executable,
    KVCache,
    Limits,
    LowRank,
    Numerics,
    Policy,
    SampleResult,
    SamplingBatch,
    Scores,
    Source,
    check_batch,
    check_groups,
    check_terms,
)
from linnet.backends.reference import sampling as sampler
from linnet.backends.reference.attention import PagedMemory, refuse_state
from linnet.backends.reference.interpreter import run_ops
from linnet.backends.reference.weights import WeightTable
from linnet.errors import ConfigError, UnsupportedError
from linnet.program.choose_numerics import choose_numerics, numerics_name
from linnet.program.hidden import vocabulary_of
from linnet.program.prescribed import refuse_rounding
from linnet.program.program import Op, PagedState, Program, Weight, cache_groups
from linnet.program.traverse import plain_ops


class ReferenceBackend:
    """Interprets Programs op by op in torch."""

    name = "reference"

    def supports(self, op: Op, program: Program) -> str | None:
        """Every kind of the vocabulary is executed; only some dtypes are not."""
        states = {state.name: state for state in program.states}
        for name in op.states:
            if name in states and (reason := refuse_state(states[name])) is not None:
                return reason
        for inner in op.expansion:
            if (why := self.supports(inner, program)) is not None:
                return f"{inner.name}: {why}"
        if op.kind == "quantise":
            return refuse_rounding(op.attributes.scheme)  # type: ignore[attr-defined]
        return None

    def prepare(
        self,
        source: Source,
        policy: Policy,
        limits: Limits,
        keep: Sequence[str] = (),
        kv_cache: KVCache = "auto",
        chosen: Program | None = None,
    ) -> "ReferenceExecutable":
        """See Backend.prepare."""
        program = choose_numerics(source.program, policy, kv_cache) if chosen is None else chosen
        reasons = [f"{op.name}: {why}" for op in program.ops if (why := self.supports(op, program)) is not None]
        if reasons:
            raise UnsupportedError("the reference backend cannot execute this model", reasons)
        return ReferenceExecutable(program, source, policy, limits, keep)

    def weight_bytes(self, weight: Weight, stored: int) -> int:
        """See Backend.weight_bytes: it works on whatever is stored."""
        return stored

    def state_bytes_per_block(self, state: PagedState, block_size: int) -> int:
        """See Backend.state_bytes_per_block."""
        return block_size * state.bytes_per_token


class ReferenceExecutable(block_memory.BlockCopies):
    """A Program and its weights in torch."""

    arena_bytes = 0

    def __init__(self, program: Program, source: Source, policy: Policy, limits: Limits, keep: Sequence[str]) -> None:
        self.program, self.limits = program, limits
        self.numerics = Numerics(f"reference/torch-{torch.__version__}/{numerics_name(program, policy)}", program)
        self.choices = {op.name: f"torch:{op.kind}" for op in plain_ops(program)}
        produced = {value.name for value in program.values}
        unknown = sorted(set(keep) - produced)
        if unknown:
            raise ConfigError(f"cannot keep {', '.join(unknown)}: the program has no such value")
        self.mapped: tuple[np.ndarray, ...] = ()  # every weight has been copied into torch's own memory
        self.kv_bytes_per_block = tuple(
            limits.block_size * sum(state.bytes_per_token for state in program.states if state.group == group)
            for group in range(cache_groups(program))
        )
        self._keep = tuple(keep)
        self._weights = WeightTable(program, source, cache=True)
        self._vocabulary = vocabulary_of(program)
        for weight in program.weights:
            self._weights.get(weight.name)
        self._adapters: dict[int, Mapping[str, LowRank]] = {}
        self._taps: dict[str, np.ndarray] = {}
        self._logits: np.ndarray | None = None

    def allocate_states(self, *num_blocks: int) -> PagedMemory:
        """See Executable.allocate_states: zeroed."""
        check_groups(self.program, num_blocks)
        return PagedMemory(self.program, num_blocks, self.limits.block_size, self.limits.max_sequences)

    @cached_property
    def stored_bytes_per_block(self) -> tuple[int, ...]:
        """See Executable.stored_bytes_per_block: codes of 4 bits take a byte each here."""
        one_of_each = self.allocate_states(*[1] * cache_groups(self.program))
        return tuple(map(block_memory.bytes_per_block, one_of_each.parts))

    def prepare_adapter(self, terms: Mapping[str, LowRank]) -> object:
        """See Executable.prepare_adapter: they are taken as they are."""
        check_terms(self.program, terms)
        return terms

    def set_adapter(self, adapter: int, prepared: object | None) -> None:
        """See Executable.set_adapter."""
        self._adapters.pop(adapter, None)
        if prepared is not None:
            assert isinstance(prepared, Mapping)
            self._adapters[adapter] = prepared

    @torch.no_grad()
    def execute(self, batch: Batch, states: object) -> None:
        """See Executable.execute."""
        assert isinstance(states, PagedMemory)
        check_batch(batch, self.limits, states.num_blocks, self._vocabulary)
        inputs = {
            name: torch.from_numpy(getattr(batch, name).copy())
            for name in (value.name for value in self.program.inputs)
        }
        if "adapters" in inputs:
            if not batch.adapters.size:
                inputs["adapters"] = torch.full(batch.token_ids.shape, -1, dtype=torch.int32)
            unknown = set(batch.adapters.tolist()) - self._adapters.keys() - {-1}
            if unknown:
                raise ConfigError(f"batch.adapters names {min(unknown)}, which was not given")
        self._taps = {}

        def on_tap(name: str, value: torch.Tensor, _: torch.Tensor | None = None) -> None:
            self._taps[name] = value.numpy().copy()

        ops = self.program.ops
        output = self.program.outputs[0]
        result = run_ops(
            self.program,
            0,
            len(ops),
            inputs,
            (output,),
            self._weights,
            states,
            taps=self._keep,
            on_tap=on_tap,
            adapters=self._adapters,
        )
        self._logits = result[output].numpy()  # type: ignore[union-attr]

    def logits(self) -> np.ndarray:
        """See Executable.logits."""
        return self._last().copy()

    def tap(self, name: str) -> np.ndarray:
        """See Executable.tap."""
        if name not in self._keep:
            raise ConfigError(f"value {name!r} is not kept; kept: {', '.join(self._keep) or 'none'}")
        if name not in self._taps:
            raise ConfigError("no step has been executed yet")
        return self._taps[name]

    def sample(self, sampling: SamplingBatch) -> SampleResult:
        """See Executable.sample."""
        return sampler.sample(self._last(), sampling)

    def score(self, rows: np.ndarray, targets: np.ndarray, other: Executable | None = None) -> Scores:
        """See Executable.score."""
        return sampler.score(self._last(), rows, targets, None if other is None else other.logits())

    def _last(self) -> np.ndarray:
        if self._logits is None:
            raise ConfigError("no step has been executed yet")
        return self._logits
