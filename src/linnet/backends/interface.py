# SPDX-License-Identifier: Apache-2.0
"""The door between those who plan steps and those who execute Programs. numpy is the only array type that crosses it.

A ``Backend`` is bound once, at load: ``prepare`` chooses kernels and returns an ``Executable``, which the engine then
drives: ``allocate_states`` once; per step ``execute``, then ``sample`` or ``score`` (or ``logits`` in tests).
An Executable is used from one thread at a time. The reference backend is the specification of every method here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from linnet.errors import ConfigError
from linnet.program.adapters import LowRank as LowRank
from linnet.program.choose_numerics import KVCache as KVCache
from linnet.program.choose_numerics import Policy as Policy
from linnet.program.program import Op, PagedState, Program, Weight, WeightRef, cache_groups
from linnet.program.serialise import digest
from linnet.program.traverse import declarations, plain_ops

if TYPE_CHECKING:
    from linnet.schemes.packed_weight import PackedWeight

SAMPLE_PURPOSE = 0
"""Purpose numbers of the Philox counter: 0 draws the token of an output position. 1 .. are free for later features."""


class Source(Protocol):
    """What a backend loads from (``models.ModelSource`` in production, a small fake in tests)."""

    @property
    def program(self) -> Program: ...

    def weight(self, ref: WeightRef) -> "np.ndarray | PackedWeight":
        """The weight's rows as ``ref`` says, as stored (mapped where possible), ``transposed`` applied."""


@runtime_checkable
class StampedSource(Source, Protocol):
    """A source whose weights a backend may keep in another order in a file of its own."""

    def stamp(self) -> tuple[str, str]:
        """Which stored bytes these are: the checkpoint's directory, and what changes when one of its files does."""

    def release(self) -> None:
        """The pages read so far are wanted no more: they need not stay resident."""


@runtime_checkable
class MappedSource(StampedSource, Protocol):
    """A source whose weights are views of mapped files."""

    def mapped(self) -> tuple[np.ndarray, ...]:
        """The bytes of every file; they stay mapped while one of these arrays lives."""

    def read_in_large_pages(self) -> int:
        """Have files that lie in small pages of memory, and need not, read anew in large ones -> how many."""


@dataclass(frozen=True)
class Limits:
    """The bounds a prepared model must serve; they size its arena."""

    max_tokens: int
    max_sequences: int
    max_outputs: int
    block_size: int
    max_blocks_per_sequence: int

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_sequences", "max_outputs", "block_size", "max_blocks_per_sequence"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def symbols(self) -> dict[str, int]:
        """The upper bound of every symbol of a Program."""
        return {
            "tokens": self.max_tokens,
            "sequences": self.max_sequences,
            "sequences_plus_one": self.max_sequences + 1,
            "blocks": self.max_blocks_per_sequence,
            "outputs": self.max_outputs,
            "logit_rows": self.max_outputs,
        }


@dataclass
class Batch:
    """One step. All arrays np.int32 and C-contiguous.

    Rows of sequence s are ``query_start[s] .. query_start[s + 1]``; their positions are consecutive and the last is
    ``context_lengths[s] - 1``. ``kv_slots`` = block id * block_size + offset, where this row's key and value go.
    A row at position p attends the slots ``block_tables[g, s, j // block_size] * block_size + j % block_size`` for
    j <= p, after this step's rows are stored (of ``full`` attention: every j, and all rows of the sequence are there).
    ``output_rows`` name the rows whose logits are wanted: the first ``logit_rows`` of them. The others are wanted for
    what is kept before the head, and may have no logits.

    Slots and tables come for each cache group g of the program (``PagedState.group``), or once for all of them, and
    then the first axis may be left out: all have as many blocks. A block that no row sees through its layer's window is
    not read. Rows that go through an adapter name it (``Executable.set_adapter``), the others have -1.
    """

    token_ids: np.ndarray  # [tokens]
    positions: np.ndarray  # [tokens]
    kv_slots: np.ndarray  # [groups, tokens]
    query_start: np.ndarray  # [sequences + 1]
    context_lengths: np.ndarray  # [sequences]
    block_tables: np.ndarray  # [groups, sequences, blocks]; unused entries are any valid block id
    output_rows: np.ndarray  # [outputs]
    state_slots: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [sequences], or [0]: none
    logit_rows: int | None = None  # None: all output rows
    adapters: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [tokens], or [0]: none

    def __post_init__(self) -> None:
        if self.kv_slots.ndim == 1:
            self.kv_slots = self.kv_slots[None]
        if self.block_tables.ndim == 2:
            self.block_tables = self.block_tables[None]


@dataclass
class SamplingBatch:
    """One entry per sampled row: n entries unless said otherwise. CSR: entry i owns [offsets[i], offsets[i + 1]).

    The definition (fixed order; reference/sampling.py is the specification):
    logits -> allowed mask (-inf) -> bias (added) -> repetition penalty over ``history`` (logit > 0: divided, else
    multiplied) -> frequency * count + presence over ``generated`` (subtracted) -> if temperature is 0: the greatest
    logit, ties to the lowest id; else divide by temperature -> top_k -> top_p -> min_p -> one uniform number of
    Philox4x32-10(seed, position, SAMPLE_PURPOSE) -> inverse CDF in token-id order.
    """

    rows: np.ndarray  # int32: index into the step's output rows
    temperature: np.ndarray  # float32, 0 = greedy
    top_k: np.ndarray  # int32, 0 = off
    top_p: np.ndarray  # float32, 1 = off
    min_p: np.ndarray  # float32, 0 = off
    repetition_penalty: np.ndarray  # float32, 1 = off
    presence_penalty: np.ndarray  # float32, 0 = off
    frequency_penalty: np.ndarray  # float32, 0 = off
    seed: np.ndarray  # uint64
    position: np.ndarray  # int64: the output position, first generated token = 0
    history_offsets: np.ndarray  # int64 [n + 1]: prompt and generated tokens (repetition penalty)
    history_ids: np.ndarray  # int32
    generated_offsets: np.ndarray  # int64 [n + 1]: generated tokens only (presence, frequency)
    generated_ids: np.ndarray  # int32
    bias_offsets: np.ndarray  # int64 [n + 1]
    bias_ids: np.ndarray  # int32, no id twice within an entry
    bias_values: np.ndarray  # float32
    top_logprobs: int | None = 0  # how many alternatives to return for every entry; None: no log-probabilities at all
    allowed: np.ndarray | None = None  # uint32 [n, ceil(vocabulary / 32)]; bit id % 32 of word id // 32 set = allowed
    top_allowed: np.ndarray | None = None  # bool: whose alternatives are of allowed tokens only; None: nobody's

    @staticmethod
    def greedy(rows: Sequence[int] | np.ndarray) -> "SamplingBatch":
        """Plain greedy sampling of ``rows``: no penalty, no bias, no mask."""
        n = len(rows)
        return SamplingBatch(
            rows=np.asarray(rows, np.int32),
            temperature=np.zeros(n, np.float32),
            top_k=np.zeros(n, np.int32),
            top_p=np.ones(n, np.float32),
            min_p=np.zeros(n, np.float32),
            repetition_penalty=np.ones(n, np.float32),
            presence_penalty=np.zeros(n, np.float32),
            frequency_penalty=np.zeros(n, np.float32),
            seed=np.zeros(n, np.uint64),
            position=np.zeros(n, np.int64),
            history_offsets=np.zeros(n + 1, np.int64),
            history_ids=np.zeros(0, np.int32),
            generated_offsets=np.zeros(n + 1, np.int64),
            generated_ids=np.zeros(0, np.int32),
            bias_offsets=np.zeros(n + 1, np.int64),
            bias_ids=np.zeros(0, np.int32),
            bias_values=np.zeros(0, np.float32),
        )


@dataclass
class SampleResult:
    """Logprobs are of the raw distribution (before mask, bias, penalties and temperature); NaN where none was wanted.

    A row without a usable distribution (NaN among its logits, or no allowed token) gets token id -1; the other rows of
    the batch are unaffected. Alternatives of allowed tokens only end, where there are fewer, in others at -inf.
    """

    token_ids: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n]
    top_ids: np.ndarray  # int32 [n, k], greatest first, ties to the lowest id
    top_logprobs: np.ndarray  # float32 [n, k]


@dataclass
class Scores:
    """Per scored row; ``kl`` and ``other_greedy`` only when another executable was given."""

    logprobs: np.ndarray  # float32 [n]: log-probability of the target
    greedy: np.ndarray  # int32 [n]: the most likely token, ties to the lowest id
    ranks: np.ndarray  # int32 [n]: tokens more likely than the target (equal logit and lower id counts as more likely)
    kl: np.ndarray | None = None  # float32 [n]: KL(other || self) over the vocabulary, in nats
    other_greedy: np.ndarray | None = None  # int32 [n]


@dataclass(frozen=True)
class Numerics:
    """What bits depend on: build, ISA tier and policy in words, and the program before it was fused."""

    named: str
    program: Program

    @cached_property
    def id(self) -> str:
        """Equal ids promise equal bits. Made when it is asked for: the digest of a program takes some 10 ms."""
        return f"{self.named}/{digest(self.program)[:16]}"


class Executable(Protocol):
    """A model bound to a backend."""

    @property
    def program(self) -> Program:
        """After choose_numerics and the backend's own passes."""

    @property
    def numerics(self) -> Numerics:
        """What the bits depend on."""

    @property
    def choices(self) -> Mapping[str, str]:
        """Op name -> kernel name; a fused op appears as the ops it stands for."""

    @property
    def arena_bytes(self) -> int:
        """Memory for the values of one step."""

    @property
    def kv_bytes_per_block(self) -> tuple[int, ...]:
        """Of the states of each cache group."""

    @property
    def stored_bytes_per_block(self) -> tuple[int, ...]:
        """What a block of each cache group takes in a store (see ``store_blocks``)."""

    @property
    def mapped(self) -> tuple[np.ndarray, ...]:
        """The mapped bytes that a step reads, in the order in which they are worth bringing into memory."""

    def allocate_states(self, *num_blocks: int) -> object:
        """Fresh paged KV for so many blocks of each cache group, or of all of them together if one number is given, and
        ``max_sequences`` slots where the program has slot states; the caller owns it and passes it to ``execute``."""

    def copy_blocks(self, states: object, sources: np.ndarray, targets: np.ndarray, group: int = 0) -> None:
        """Copy blocks int32 [n] of a cache group to as many others, every state's; no target is a source. Writes the
        targets only. States that were allocated with one number are of one group here and below."""

    def store_blocks(
        self, states: object, blocks: np.ndarray, store: np.ndarray, slots: np.ndarray, group: int = 0
    ) -> None:
        """Copy blocks int32 [n], every state's, into rows int32 [n] of ``store`` uint8 [slots, stored_bytes_per_block].

        What a row holds means something only to an executable of the same program, backend and block size.
        """

    def load_blocks(
        self, states: object, store: np.ndarray, slots: np.ndarray, blocks: np.ndarray, group: int = 0
    ) -> None:
        """Copy rows of a store back, as they were stored, into as many blocks. Writes these blocks only."""

    def prepare_adapter(self, terms: Mapping[str, LowRank]) -> object:
        """An adapter, by name of a low_rank_add, as ``set_adapter`` takes it. From any thread, beside steps: all that
        takes time is done here. ConfigError for a name or a shape that the program has not."""

    def set_adapter(self, adapter: int, prepared: object | None) -> None:
        """What rows of an adapter get from the next step on; None: it is unknown from now on."""

    def execute(self, batch: Batch, states: object) -> None:
        """Run the program. Writes ``states`` at the batch's slots only; replaces logits and taps of the last step."""

    def logits(self) -> np.ndarray:
        """A copy of the last step's logits, float32 [outputs or logit_rows, vocabulary]; for tests and conformance."""

    def tap(self, name: str) -> np.ndarray:
        """A kept value of the last step, float32 [rows, width]; ConfigError if it was not in ``keep``."""

    def sample(self, sampling: SamplingBatch) -> SampleResult:
        """Draw one token per entry from the last step's logits."""

    def score(self, rows: np.ndarray, targets: np.ndarray, other: "Executable | None" = None) -> Scores:
        """Log-probabilities of ``targets`` int32 [n] at output rows ``rows`` int32 [n] of the last step.

        With ``other`` (same vocabulary, same backend, its last step has the same output rows): also KL(other || self).
        """


class Backend(Protocol):
    """Who executes Programs."""

    name: str

    def supports(self, op: Op, program: Program) -> str | None:
        """None, or a sentence saying why this op cannot be executed here."""

    def state_bytes_per_block(self, state: PagedState, block_size: int) -> int:
        """Bytes that one block of a state takes here, padding included."""

    def weight_bytes(self, weight: Weight, stored: int) -> int:
        """Bytes that a weight takes once it is prepared, where that is another form than the ``stored`` one: zeros put
        back or left out."""

    def prepare(
        self,
        source: Source,
        policy: Policy,
        limits: Limits,
        keep: Sequence[str] = (),
        kv_cache: KVCache = "auto",
        chosen: Program | None = None,
    ) -> Executable:
        """Choose numerics and kernels and load the weights. UnsupportedError lists every refusal with its reason.

        ``keep`` names values to be read by ``tap`` after a step; ``kv_cache``: what KV stores, see ``choose_numerics``;
        ``chosen``: what that made of the source's program, where the caller has it already.
        """


def check_batch(batch: Batch, limits: Limits, num_blocks: Sequence[int], vocabulary: int) -> None:
    """Refuse a batch that would read or write outside its buffers; ConfigError names the field and the value."""
    tokens, sequences = batch.token_ids.shape[0], batch.context_lengths.shape[0]
    groups = len(num_blocks)
    expected: dict[str, tuple[int, ...]] = {
        "token_ids": (tokens,),
        "positions": (tokens,),
        "kv_slots": (groups, tokens),
        "query_start": (sequences + 1,),
        "context_lengths": (sequences,),
        "output_rows": (batch.output_rows.shape[0],),
    }
    for name, shape in expected.items():
        array = getattr(batch, name)
        if array.dtype != np.int32 or array.shape != shape or not array.flags.c_contiguous:
            raise ConfigError(f"batch.{name} must be C-contiguous int32 {shape}, not {array.dtype} {array.shape}")
    tables = batch.block_tables
    if tables.dtype != np.int32 or tables.ndim != 3 or not tables.flags.c_contiguous:
        raise ConfigError(f"batch.block_tables must be C-contiguous int32 of rank 3, not {tables.dtype} {tables.shape}")
    if tables.shape[:2] != (groups, sequences):
        raise ConfigError(f"batch.block_tables must be [{groups}, {sequences}, blocks], not {tables.shape}")
    for name, size, bound in (
        ("tokens", tokens, limits.max_tokens),
        ("sequences", sequences, limits.max_sequences),
        ("outputs", batch.output_rows.shape[0], limits.max_outputs),
        ("blocks per sequence", tables.shape[2], limits.max_blocks_per_sequence),
    ):
        if size > bound:
            raise ConfigError(f"batch has {size} {name}; this executable was prepared for at most {bound}")
    _in_range("token_ids", batch.token_ids, vocabulary)
    for group, blocks in enumerate(num_blocks):
        _in_range("kv_slots", batch.kv_slots[group], blocks * limits.block_size)
        _in_range("block_tables", tables[group], blocks)
    _in_range("output_rows", batch.output_rows, tokens)
    slots = batch.state_slots
    if slots.size:
        if slots.dtype != np.int32 or slots.shape != (sequences,) or not slots.flags.c_contiguous:
            raise ConfigError(f"batch.state_slots must be C-contiguous int32 [{sequences}], not {slots.shape}")
        _in_range("state_slots", slots, limits.max_sequences)
        if len(np.unique(slots)) < sequences:
            raise ConfigError("batch.state_slots names a slot twice")
    adapters = batch.adapters
    if adapters.size and (adapters.dtype != np.int32 or adapters.shape != (tokens,) or int(adapters.min()) < -1):
        raise ConfigError(f"batch.adapters must be int32 [{tokens}] of at least -1, not {adapters.shape}")
    starts = batch.query_start
    if starts[0] != 0 or starts[-1] != tokens or (np.diff(starts) < 1).any():
        raise ConfigError(f"batch.query_start must rise from 0 to {tokens} with at least one row per sequence")
    lengths = np.diff(starts)
    wanted = np.repeat(batch.context_lengths - lengths - starts[:-1], lengths) + np.arange(tokens)
    if (wanted != batch.positions).any() or (batch.positions < 0).any():
        raise ConfigError("batch.positions must be consecutive per sequence and end at context_lengths - 1")
    if (batch.context_lengths > tables.shape[2] * limits.block_size).any():
        raise ConfigError("batch.context_lengths exceed what block_tables can address")


def check_groups(program: Program, num_blocks: Sequence[int]) -> None:
    """Refuse numbers of blocks that are not of this program's cache groups; ConfigError."""
    if len(num_blocks) not in (1, cache_groups(program)):
        raise ConfigError(
            f"blocks of {len(num_blocks)} cache groups were asked for; accepted: 1 or {cache_groups(program)}"
        )
    if min(num_blocks) < 1:
        raise ConfigError(f"num_blocks must be at least 1, not {min(num_blocks)}")


def _in_range(name: str, array: np.ndarray, bound: int) -> None:
    if array.size and (int(array.min()) < 0 or int(array.max()) >= bound):
        raise ConfigError(f"batch.{name} must lie in [0, {bound}), found {int(array.min())} .. {int(array.max())}")


def check_terms(program: Program, terms: Mapping[str, LowRank]) -> None:
    """Refuse what an adapter cannot add there; ConfigError names the op."""
    shapes = {
        op.name: (declared[op.inputs[0]].shape[-1], declared[op.inputs[1]].shape[-1])
        for declared in [declarations(program)]
        for op in plain_ops(program)
        if op.kind == "low_rank_add"
    }
    for name, term in terms.items():
        if name not in shapes:
            raise ConfigError(f"an adapter adds to {name}; this program adds nothing there")
        found, wanted = (term.up.shape[0], term.down.shape[1]), shapes[name]
        if found != wanted or term.up.shape[1] != term.rank:
            raise ConfigError(f"an adapter's term of {name} is {list(found)}; there it must be {list(wanted)}")
