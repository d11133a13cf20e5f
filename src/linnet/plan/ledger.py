# SPDX-License-Identifier: Apache-2.0
"""The memory ledger: what a model will need on a machine, to the byte, before anything is allocated.

Everything is derived from the Program: weights from its references, activations from plan_buffers, KV from its
declared states as the backend stores them. Around them lie the interpreter, its libraries, the model as Python sees it
and the tokenizer: those numbers are measured, not derived.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from linnet.backends.interface import Backend, KVCache, Limits, Policy
from linnet.models.load import ModelSource
from linnet.plan.kv import KVLayer, KVShape
from linnet.process_memory import Footprint
from linnet.program.attributes import Attention, Experts
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse
from linnet.program.plan_buffers import plan_buffers, resolve_shape
from linnet.program.program import Dimension, PagedState, Program, group_windows
from linnet.program.traverse import declarations
from linnet.program.wanted_rows import wanted_rows
from linnet.text.files import tokenizer_json_bytes

LOGITS_BYTES = 64 << 20
"""Bound on the fp32 logits of one step: it limits how many prompt rows are scored at once."""


PROCESS_BYTES = 57_000_000
"""The interpreter, its libraries, worker stacks: measured with `linnet generate`."""

OP_BYTES = 18_000
"""The model as Python sees it, per operation of its program (measured: 325 to 605 of them)."""

ENGINE_IMPORTS_BYTES, ENGINE_GROWTH_BYTES = 51_000_000, 1_500_000
"""A process that is an engine, before it opens a model, and what steps add to it."""

SERVER_IMPORTS_BYTES, SERVER_GROWTH_BYTES = 75_500_000, 12_000_000
"""A server's process around such an engine, before it reads the tokenizer, and what requests add to it."""

TOKENIZER_READ = 4
"""Bytes a tokenizer takes once it is read, per byte of tokenizer.json (measured with 128k pieces)."""

TOKENIZER_READING = 12
"""Bytes that reading it takes for a moment, per byte of tokenizer.json (measured: 10 to 10.7)."""


@dataclass(frozen=True)
class Ledger:
    """Bytes a model needs under ``limits`` and ``policy``.

    ``embedding_bytes``, ``block_bytes`` and ``head_bytes`` are stored weights and sum to ``weight_bytes`` (a tied
    head counts under the embedding). ``arena_bytes`` holds every activation of a step, the ``logits_bytes`` of its
    output rows among them; ``step_arena_bytes`` is what of it is touched while no prompt is scored. ``operations``:
    of the program; ``tokenizer_bytes``: of its tokenizer.json. ``step_weight_bytes`` is what one decode step reads
    of the weights: all but the embedding table, unless the head is tied to it, and of experts those that a token gets.
    ``multiplications``: of weights with one row (one token); ``prompt_multiplications``: with a row whose logits nobody
    asks for, as nearly all of a prompt's. ``slot_bytes_per_sequence``: what a sequence carries, however
    long it is. ``adapter_bytes``: of all adapters that may be loaded.
    """

    policy: Policy
    limits: Limits
    embedding_bytes: int
    block_bytes: int
    head_bytes: int
    arena_bytes: int
    step_arena_bytes: int
    logits_bytes: int
    operations: int
    tokenizer_bytes: int
    kv_layers: tuple[KVLayer, ...]
    step_weight_bytes: int
    multiplications: int
    prompt_multiplications: int
    attention_width: int
    slot_bytes_per_sequence: int = 0
    adapter_bytes: int = 0

    @property
    def slot_bytes(self) -> int:
        """What sequences carry beside keys and values, as many as run at once."""
        return self.slot_bytes_per_sequence * self.limits.max_sequences

    @property
    def weight_bytes(self) -> int:
        """All weights as stored."""
        return self.embedding_bytes + self.block_bytes + self.head_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return sum(layer.bytes_per_token for layer in self.kv_layers)

    @property
    def kv_bytes_per_block(self) -> int:
        """One block of the pool over all layers."""
        return self.kv_bytes_per_token * self.limits.block_size

    @property
    def kv_bytes(self) -> int:
        """The whole pool if every sequence reaches the longest context; what lies behind windows is given back."""
        limits = self.limits
        shape = KVShape(self.kv_layers, limits.block_size, limits.max_sequences, limits.max_tokens)
        return limits.max_sequences * shape.sequence_bytes(limits.max_blocks_per_sequence * limits.block_size)

    @property
    def process_bytes(self) -> int:
        """Around weights, arena and KV of a process with a model in it."""
        return PROCESS_BYTES + OP_BYTES * self.operations + TOKENIZER_READ * self.tokenizer_bytes

    def engine_footprint(self, kv_bytes: int, started_bytes: int = ENGINE_IMPORTS_BYTES) -> Footprint:
        """Of an engine in a process that had ``started_bytes`` before it opened the model, with such a KV cache."""
        around = started_bytes + ENGINE_GROWTH_BYTES + OP_BYTES * self.operations
        step_bytes = self.arena_bytes + self.slot_bytes
        weight_bytes = self.weight_bytes + self.adapter_bytes
        return Footprint(weight_bytes=weight_bytes, step_bytes=step_bytes, kv_bytes=kv_bytes, engine_bytes=around)

    @property
    def server_bytes(self) -> int:
        """Of the process around such an engine: reading the tokenizer, or serving, whichever takes more."""
        return SERVER_IMPORTS_BYTES + server_growth_bytes(self.tokenizer_bytes)

    @property
    def total_bytes(self) -> int:
        """Weights, adapters, arena, KV pool and what sequences carry beside it."""
        return self.weight_bytes + self.adapter_bytes + self.arena_bytes + self.kv_bytes + self.slot_bytes

    @property
    def resident_bytes(self) -> int:
        """The process at its largest, every sequence at the longest context: what the system will show as resident."""
        weights = self.weight_bytes + self.adapter_bytes
        return weights + self.step_arena_bytes + self.kv_bytes + self.slot_bytes + self.process_bytes

    def kv_bytes_read(self, context_tokens: int) -> int:
        """Keys and values one token's step reads at a context, windows respected."""
        return sum(
            layer.bytes_per_token * (context_tokens if layer.window is None else min(context_tokens, layer.window))
            for layer in self.kv_layers
        )

    def rows(self) -> tuple[tuple[str, int], ...]:
        """(what, bytes) for people, the total last."""
        limits = self.limits
        context = limits.max_blocks_per_sequence * limits.block_size
        return (
            ("weights: embedding", self.embedding_bytes),
            ("weights: blocks", self.block_bytes),
            ("weights: head", self.head_bytes),
            *([("adapters", self.adapter_bytes)] if self.adapter_bytes else []),
            (f"activations of {limits.max_tokens} tokens, {limits.max_outputs} output rows", self.arena_bytes),
            (f"KV of {limits.max_sequences} x {context} tokens", self.kv_bytes),
            *([(f"states of {limits.max_sequences} sequences", self.slot_bytes)] if self.slot_bytes else []),
            ("total", self.total_bytes),
        )

    def table(self) -> str:
        """The rows as aligned text."""
        rows = [(label, f"{count:,}") for label, count in self.rows()]
        wide, digits = max(len(label) for label, _ in rows), max(len(count) for _, count in rows)
        return "\n".join(f"{label:<{wide}}  {count:>{digits}} bytes" for label, count in rows)


def predict(
    source: ModelSource,
    limits: Limits,
    policy: Policy,
    backend: Backend | None = None,
    kv_cache: KVCache = "auto",
    chosen: Program | None = None,
    tokenizer_bytes: int | None = None,
    keep: Sequence[str] = (),
    adapter_bytes: int = 0,
) -> Ledger:
    """What ``backend.prepare(source, policy, limits, keep, kv_cache)`` and a full KV pool will take.

    Without a backend the KV is what the program declares, and weights lie as stored; backends may pad the one and put
    zeros back into the other. ``chosen``: what choose_numerics made of the source's program, where the caller has it;
    ``tokenizer_bytes``: of tokenizer.json, where the caller knows. ``adapter_bytes``: what adapters may take beside it.
    """
    declared = choose_numerics(source.program, policy, kv_cache) if chosen is None else chosen
    program = wanted_rows(declared, keep)
    fused, bounds, least = fuse(program, keep), limits.symbols(), limits.max_sequences
    logits = declarations(program)[program.outputs[0]]
    rows, vocabulary = resolve_shape(logits, bounds)
    stored, parts = _weigh(source, program, backend)
    multiplications = _multiplications(program)
    embedding = stored[program.ops[0].weights[0]]
    tied = program.ops[0].weights[0] in _head_weights(program)
    return Ledger(
        policy=policy,
        limits=limits,
        embedding_bytes=parts["embed"],
        block_bytes=parts["block"],
        head_bytes=parts["head"],
        arena_bytes=plan_buffers(fused, bounds, keep).arena_bytes,
        step_arena_bytes=plan_buffers(fused, bounds | {"outputs": least, "logit_rows": least}, keep).arena_bytes,
        logits_bytes=rows * vocabulary * 4,
        operations=len(program.ops),
        tokenizer_bytes=tokenizer_json_bytes(source.checkpoint.path) if tokenizer_bytes is None else tokenizer_bytes,
        kv_layers=_kv_layers(program, limits.block_size, backend),
        step_weight_bytes=sum(parts.values()) - (0 if tied else embedding) - _idle_bytes(program, stored),
        multiplications=sum(multiplications.values()),
        prompt_multiplications=multiplications["tokens"],
        attention_width=sum(attention.heads * attention.head_size for attention in _attentions(program).values()),
        slot_bytes_per_sequence=program.slot_bytes,
        adapter_bytes=adapter_bytes,
    )


def server_growth_bytes(tokenizer_bytes: int) -> int:
    """What a server's process takes beside its libraries."""
    return max(TOKENIZER_READING * tokenizer_bytes, TOKENIZER_READ * tokenizer_bytes + SERVER_GROWTH_BYTES)


def _attentions(program: Program) -> dict[str, Attention]:
    """State -> the attention that reads it."""
    return {op.states[0]: op.attributes for op in program.ops if isinstance(op.attributes, Attention)}


def _kv_layers(program: Program, block_size: int, backend: Backend | None) -> tuple[KVLayer, ...]:
    attentions = _attentions(program)
    return tuple(
        KVLayer(kv_bytes_per_token(state, block_size, backend), attentions[state.name].window)
        for state in program.states
    )


def kv_shape(
    program: Program, block_size: int, max_sequences: int, chunk_tokens: int, backend: Backend | None
) -> KVShape:
    """The cache groups of a program, as the backend keeps them."""
    sizes = [0] * len(windows := group_windows(program))
    for state in program.states:
        sizes[state.group] += kv_bytes_per_token(state, block_size, backend)
    groups = tuple(KVLayer(size, window) for size, window in zip(sizes, windows, strict=True))
    return KVShape(groups, block_size, max_sequences, chunk_tokens)


def output_rows(width: int, token_budget: int, sequences: int) -> int:
    """Rows whose logits one step may hold: every sequence's, and for scoring as many as LOGITS_BYTES has room for.

    ``width``: of such a row."""
    room = max(LOGITS_BYTES // (4 * width), sequences, 1)
    return min(room, max(token_budget, sequences))


def kv_bytes_per_token(state: PagedState, block_size: int, backend: Backend | None) -> int:
    """Of one layer, padding of the backend included and rounded up: what every prediction of KV memory counts."""
    if backend is None:
        return state.bytes_per_token
    return -(-backend.state_bytes_per_block(state, block_size) // block_size)


def _head_weights(program: Program) -> set[str]:
    return {name for op in program.ops if op.kind == "logits" for name in op.weights}


def _weigh(source: ModelSource, program: Program, backend: Backend | None) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes per weight as the backend keeps it, and per kind of segment (each weight where it is first read)."""
    weights = {weight.name: weight for weight in program.weights}
    stored: dict[str, int] = {}
    parts = {"embed": 0, "block": 0, "head": 0}
    for segment in program.segments:
        for op in program.ops[segment.start : segment.stop]:
            for name in op.weights:
                if name not in stored:
                    bytes_stored = source.stored_bytes(weights[name].ref)
                    stored[name] = (
                        bytes_stored if backend is None else backend.weight_bytes(weights[name], bytes_stored)
                    )
                    parts[segment.kind] += stored[name]
    return stored, parts


def _idle_bytes(program: Program, stored: Mapping[str, int]) -> int:
    """Bytes of the experts that a step of one token leaves alone."""
    declared, idle = declarations(program), 0
    for op in program.ops:
        if isinstance(op.attributes, Experts):
            chosen = int(declared[op.outputs[0]].shape[1])
            idle += sum(stored[name] for name in op.weights) * (op.attributes.experts - chosen) // op.attributes.experts
    return idle


def _multiplications(program: Program) -> Counter[Dimension]:
    """Multiplications of weights with one row, by which rows they are done for: ``tokens`` or ``outputs``."""
    declared, weights = declarations(program), {weight.name: weight for weight in program.weights}
    found: Counter[Dimension] = Counter()
    for op in program.ops:
        if op.kind in ("linear", "logits", "router", "experts"):
            outputs = declared[op.outputs[0]].shape
            found[outputs[0]] += prod(int(size) for size in outputs[1:]) * weights[op.weights[0]].shape[1]
    return found
