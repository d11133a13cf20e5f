# SPDX-License-Identifier: Apache-2.0
"""The CPU backend behind the common door: choose numerics, refuse in words, lower once; a step is one native call."""

import contextlib
import logging
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from linnet.backends import block_memory
from linnet.backends.cpu import _native, adapters, tiles
from linnet.backends.cpu.lower import Lowering, group_size, input_type, kv_layout, kv_piece_bytes, plan
from linnet.backends.cpu.passes import widen_inputs
from linnet.backends.cpu.sampling import Sampler
from linnet.backends.cpu.support import refusals, refuse
from linnet.backends.cpu.tile_cache import TileCache
from linnet.backends.cpu.weights import WeightTable
from linnet.backends.interface import (
    Batch,
    Executable,
    KVCache,
    Limits,
    LowRank,
    MappedSource,
    Numerics,
    Policy,
    SampleResult,
    SamplingBatch,
    Scores,
    Source,
    StampedSource,
    check_groups,
    check_terms,
)
from linnet.errors import ConfigError, UnsupportedError, unknown_choice
from linnet.program.choose_numerics import choose_numerics, numerics_name
from linnet.program.fuse import fuse
from linnet.program.program import Op, PagedState, Program, Weight, cache_groups
from linnet.program.traverse import declarations, multiplied
from linnet.program.wanted_rows import wanted_rows
from linnet.schemes.scheme import LinearScheme

logger = logging.getLogger(__name__)

ISAS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2", "neon_i8mm", "portable")
"""Instruction-set tiers, best first."""


@cache
def _say_portable() -> None:
    logger.warning("this CPU has neither AVX-512 nor AVX2 with FMA: the portable kernels run, many times slower")


class CpuBackend:
    """Executes Programs with the native kernels. ``isa`` forces a tier, ``threads`` the size of the pool.

    The default is the best tier of this machine and one thread per physical core this process may use. Bits depend on
    the tier, never on ``threads``. Executables of one backend share its pool. ``large_pages``: see CpuSettings.
    """

    name = "cpu"

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        tile_cache: TileCache | None = None,
        large_pages: bool = False,
    ) -> None:
        available = _native.available_isas()
        if isa is not None and isa not in ISAS:
            raise unknown_choice("isa", isa, ISAS)
        if isa is not None and isa not in available:
            raise UnsupportedError(
                f"isa is {isa!r}, which this machine does not have; it has {', '.join(available)}", settings=["isa"]
            )
        if threads is not None and not 1 <= threads <= 1024:
            raise ConfigError(f"threads is {threads}; accepted is 1 to 1024", settings=["threads"])
        if isa is None and available[0] == "portable":
            _say_portable()
        self.isa: str = isa or available[0]
        self.threads: int = threads or _native.default_threads()
        self.tile_cache, self.large_pages = tile_cache, large_pages

    @cached_property
    def pool(self) -> Any:
        """The worker threads, started when something is prepared: who only asks for sizes needs none."""
        return _native.ThreadPool(self.threads)

    def supports(self, op: Op, program: Program) -> str | None:
        """None, or a sentence saying why this op cannot be executed here."""
        return refuse(op, program)

    def state_bytes_per_block(self, state: PagedState, block_size: int) -> int:
        """See Backend.state_bytes_per_block: lanes that a head does not fill are stored too."""
        if reason := _refuse_block_size(block_size):
            raise UnsupportedError("the cpu backend cannot execute this model", [reason])
        return int(_native.kv_bytes_per_block(*kv_layout(state), block_size))

    def weight_bytes(self, weight: Weight, stored: int) -> int:
        """See Backend.weight_bytes: what lies in no form that kernels read is kept as tiles."""
        kind = weight.dtype
        if not isinstance(kind, LinearScheme) or len(weight.shape) != 2:
            return stored
        return tiles.weight_bytes(self.isa, kind, (weight.shape[0], weight.shape[1]), stored)

    def prepare(
        self,
        source: Source,
        policy: Policy,
        limits: Limits,
        keep: Sequence[str] = (),
        kv_cache: KVCache = "auto",
        chosen: Program | None = None,
    ) -> "CpuExecutable":
        """See Backend.prepare. Weights stay where the source mapped them."""
        program = choose_numerics(source.program, policy, kv_cache) if chosen is None else chosen
        reasons = refusals(program)
        if reason := _refuse_block_size(limits.block_size):
            reasons.append(reason)
        if reasons:
            raise UnsupportedError("the cpu backend cannot execute this model", reasons)
        produced = {value.name for value in program.values}
        unknown = sorted(set(keep) - produced)
        if unknown:
            raise ConfigError(f"cannot keep {', '.join(unknown)}: the program has no such value")
        return CpuExecutable(self, program, source, policy, limits, tuple(keep))


def _refuse_block_size(block_size: int) -> str | None:
    if block_size % 16 and block_size not in (1, 2, 4, 8):
        return f"block_size {block_size}: accepted are 1, 2, 4, 8 and multiples of 16"
    return None


class States:
    """Paged KV of every layer in one zeroed allocation, and the slots of slot states in another; pages are touched when
    first written.

    Small pages: every layer's pool begins where nothing has been written yet, so huge ones would take 2 MB a layer for
    the first token; and they are five times slower to touch and no faster to read (docs/backends.md).
    """

    def __init__(
        self, num_blocks: Sequence[int], layers: Sequence[block_memory.LayerMemory], slot_bytes: int = 0
    ) -> None:
        """``num_blocks``: of each cache group."""
        self.num_blocks = list(num_blocks)
        self.memory = _zeros(sum(num_blocks[layer.group] * sum(layer.pieces) for layer in layers))
        self.parts = block_memory.parts_of(self.memory, layers, num_blocks)
        self.slots = _zeros(slot_bytes) if slot_bytes else None


def _zeros(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], untouched."""
    mapping = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages needs no advice
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


@dataclass(frozen=True)
class Tiles:
    """Tiles of an executable. ``mapped``: the file they lie in; None where they lie in memory, if there are any."""

    mapped: np.ndarray | None
    nbytes: int


class CpuExecutable(block_memory.BlockCopies):
    """A Program bound to native kernels. Used from one thread at a time."""

    def __init__(
        self,
        backend: CpuBackend,
        program: Program,
        source: Source,
        policy: Policy,
        limits: Limits,
        keep: tuple[str, ...],
    ) -> None:
        self.limits, self.isa = limits, backend.isa
        self._keep = keep
        self._weights = WeightTable(program, source, backend.isa)
        linears, refused = self._load_linears(program)
        tiles = self._attach_tiles(backend, source, program, linears, refused)
        self._weights.forget_tiled()
        widened = widen_inputs(program, refused)
        self.program = fuse(wanted_rows(widened, keep), keep)
        buffers = plan(self.program, limits, keep, self.isa)
        self._output = self.program.outputs[0]
        declared = declarations(self.program)
        self.vocabulary = _vocabulary(program)
        lowering = Lowering(
            self.program, self._weights, linears, limits, buffers, self.isa, backend.pool, self.vocabulary
        )
        self._native, self._values = lowering.executor, lowering.values
        self._adapters = adapters.AdapterTable(lowering.executor, lowering.low_ranks)
        self._widths = {name: int(value.shape[-1]) for name, value in declared.items() if name in self._values}
        self.choices: dict[str, str] = lowering.choices
        self.arena_bytes: int = buffers.arena_bytes
        self.tile_bytes: int = tiles.nbytes
        self.mapped = _mapped(source, tiles, backend.large_pages)
        self.kv_bytes_per_block = tuple(
            sum(sum(layer.pieces) for layer in self._layers() if layer.group == group)
            for group in range(cache_groups(program))
        )
        self.stored_bytes_per_block = self.kv_bytes_per_block
        # Of the program before gather_early and fuse: they and taps regroup work and change no bit, so no id either.
        self.numerics = Numerics(f"cpu/{_native.build_id}/{self.isa}/{numerics_name(program, policy)}", widened)
        self._sampler = Sampler(self.isa, backend.pool)
        self._executed = False
        logger.info("%d operations per step, %d before fusing", len(self.program.ops), len(widened.ops))

    def _load_linears(self, program: Program) -> tuple[dict[str, list[Any]], set[str]]:
        """Native weights per op, and the ops whose weights have no integer kernel for their int8 input."""
        declared = declarations(program)
        linears: dict[str, list[Any]] = {}
        refused: set[str] = set()
        for op in program.ops:
            if op.kind not in ("linear", "logits", "router", "experts", "embed"):
                continue
            names = multiplied(op)
            biases = op.weights[len(names) :] or (None,) * len(names)
            weights = [self._weights.linear(*pair) for pair in zip(names, biases, strict=True)]
            linears[op.name] = weights
            if op.kind == "embed":
                continue
            value = declared[op.inputs[0]]
            reasons = (
                _native.refuse_linear(self.isa, weight, input_type(value), group_size(value)) for weight in weights
            )
            reason = next((reason for reason in reasons if reason is not None), None)
            if reason is not None:
                if input_type(value) != _native.InputType.int8:
                    raise UnsupportedError("the cpu backend cannot execute this model", [f"{op.name}: {reason}"])
                logger.info("%s: fp32 arithmetic on decoded weights (%s)", op.name, reason)
                refused.add(op.name)
        return linears, refused

    def _attach_tiles(
        self, backend: CpuBackend, source: Source, program: Program, linears: dict[str, list[Any]], refused: set[str]
    ) -> "Tiles":
        """Tiles for the linears that multiply integers, for an embedding that one of them is tied to, and for what is
        read as tiles only: mapped from the cache's file, else the last kind in memory."""
        declared = declarations(program)
        stored = {weight.name: repr(replace(weight, name="")) for weight in program.weights}
        views: dict[str, list[Any]] = {}
        tables: dict[str, list[Any]] = {}
        for op in program.ops:
            integers = (
                op.name in linears
                and op.kind != "embed"
                and op.name not in refused
                and input_type(declared[op.inputs[0]]) == _native.InputType.int8
            )
            for name, view in zip(multiplied(op), linears.get(op.name, ()), strict=False):
                if integers or self._weights.needs_tiles(view):
                    views.setdefault(stored[name], []).append(view)
                elif op.kind == "embed":
                    tables.setdefault(stored[name], []).append(view)
        for what in tables.keys() & views.keys():
            views[what] += tables[what]

        def fill(view: Any, target: np.ndarray) -> None:
            self._weights.fill_tiles(self.isa, backend.pool, view, target)

        if backend.tile_cache is not None and isinstance(source, StampedSource):
            mapped = backend.tile_cache.attach(source.stamp(), self.isa, views, fill, source.release)
            if mapped is not None:
                return Tiles(mapped, mapped.nbytes)
        nbytes = 0
        for own in views.values():
            if self._weights.needs_tiles(own[0]):
                size = int(_native.tile_bytes(self.isa, own[0]))
                memory = self._weights.keep(np.frombuffer(mmap.mmap(-1, size), np.uint8))
                fill(own[0], memory)
                if isinstance(source, StampedSource):
                    source.release()
                for view in own:
                    view.use_tiles(self.isa, memory)
                nbytes += size
        return Tiles(None, nbytes)

    def _layers(self) -> list[block_memory.LayerMemory]:
        return [
            block_memory.LayerMemory(state.group, tuple(kv_piece_bytes(state, self.limits.block_size)))
            for state in self.program.states
        ]

    def allocate_states(self, *num_blocks: int) -> States:
        """See Executable.allocate_states: zeroed."""
        check_groups(self.program, num_blocks)
        layers = self._layers() if len(num_blocks) > 1 else [replace(layer, group=0) for layer in self._layers()]
        return States(num_blocks, layers, self.limits.max_sequences * self._native.slot_bytes)

    def prepare_adapter(self, terms: Mapping[str, LowRank]) -> object:
        """See Executable.prepare_adapter."""
        check_terms(self.program, terms)
        return adapters.packed(terms)

    def set_adapter(self, adapter: int, prepared: object | None) -> None:
        """See Executable.set_adapter."""
        assert prepared is None or isinstance(prepared, adapters.PackedAdapter)
        self._adapters.set(adapter, prepared)

    def execute(self, batch: Batch, states: object) -> None:
        """See Executable.execute. One native call, the GIL released; ConfigError before anything is written."""
        assert isinstance(states, States)
        try:
            self._native.execute(
                batch.token_ids,
                batch.positions,
                batch.kv_slots,
                batch.query_start,
                batch.context_lengths,
                batch.block_tables,
                batch.output_rows,
                states.memory,
                states.num_blocks,
                batch.state_slots if batch.state_slots.size else None,
                states.slots,
                batch.logit_rows,
                self._adapters.of_rows(batch.adapters),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except TypeError:
            raise ConfigError(_wrong_types(batch)) from None
        self._executed = True

    def logits(self) -> np.ndarray:
        """See Executable.logits."""
        return self.logits_view().copy()

    def logits_view(self) -> np.ndarray:
        """The last step's logits in place, float32 [outputs, vocabulary]; overwritten by the next step."""
        self._check_executed()
        return self._native.view(self._values[self._output])

    def tap(self, name: str) -> np.ndarray:
        """See Executable.tap. Rounded values are widened to float32."""
        if name not in self._keep:
            raise ConfigError(f"value {name!r} is not kept; kept: {', '.join(self._keep) or 'none'}")
        self._check_executed()
        index = self._values[name]
        out = np.empty((self._native.rows(index), self._widths[name]), np.float32)
        self._native.read(index, out)
        return out

    def sample(self, batch: SamplingBatch) -> SampleResult:
        """See Executable.sample."""
        return self._sampler.sample(self.logits_view(), batch)

    def score(self, rows: np.ndarray, targets: np.ndarray, other: Executable | None = None) -> Scores:
        """See Executable.score."""
        compared = None
        if other is not None:
            compared = other.logits_view() if isinstance(other, CpuExecutable) else other.logits()
        return self._sampler.score(self.logits_view(), rows, targets, compared)

    def set_profiling(self, on: bool) -> None:
        """Time every op of the following steps (a clock read per op)."""
        self._native.set_profiling(on)

    def profile(self) -> list[tuple[str, float]]:
        """(op name, seconds) in program order, summed over the steps since the last call."""
        return self._native.profile()

    def _check_executed(self) -> None:
        if not self._executed:
            raise ConfigError("no step has been executed yet")


def _mapped(source: Source, tiles: Tiles, large_pages: bool) -> tuple[np.ndarray, ...]:
    """What a step reads: the tiles, else the source's files, in large pages if those are wanted."""
    own = () if tiles.mapped is None else (tiles.mapped,)
    if not isinstance(source, MappedSource):
        return own
    if tiles.nbytes:
        source.release()  # checking has touched their scales; from here on a few rows of them are read, if any
        return own
    mapped = source.mapped()
    if not mapped:
        source.release()  # what they hold has been copied
        return ()
    if large_pages and (count := source.read_in_large_pages()):
        logger.info("%d files of weights lay in small pages of memory and are read anew", count)
    return mapped


def _vocabulary(program: Program) -> int:
    """Token ids are bounded by the embedding table (and by nothing if the program embeds nothing)."""
    weights = {weight.name: weight for weight in program.weights}
    rows = [weights[op.weights[0]].shape[0] for op in program.ops if op.inputs == ("token_ids",)]
    return min(rows) if rows else 2**31 - 1


def _wrong_types(batch: Batch) -> str:
    """Which field of a batch is not a C-contiguous int32 array of the right rank."""
    fields = (
        "token_ids", "positions", "kv_slots", "query_start", "context_lengths", "block_tables", "output_rows",
        "state_slots", "adapters",
    )  # fmt: skip
    ranks = {"kv_slots": 2, "block_tables": 3}
    for name in fields:
        array, rank = getattr(batch, name), ranks.get(name, 1)
        good = isinstance(array, np.ndarray) and array.dtype == np.int32 and array.ndim == rank
        if not good or not array.flags.c_contiguous:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            return f"batch: {name} must be a C-contiguous int32 array of rank {rank}, not {found}"
    return "batch: states do not belong to this executable"
