# SPDX-License-Identifier: Apache-2.0
"""Lowering: a Program becomes a list of native operations. One method per op kind; nothing here runs during a step."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from linnet.backends.cpu import _native
from linnet.backends.cpu.weights import Array, WeightTable
from linnet.backends.interface import Limits
from linnet.program import attributes as a
from linnet.program.plan_buffers import BufferPlan, plan_buffers
from linnet.program.prescribed import keeps_codes
from linnet.program.program import Op, PagedState, Program, Value
from linnet.program.traverse import declarations, plain_ops
from linnet.schemes.scheme import Scheme

KV_STORAGES = {
    "fp32": _native.KVStorage.fp32,
    "bf16": _native.KVStorage.bf16,
    "int8": _native.KVStorage.int8,
    "fp8_e4m3": _native.KVStorage.fp8,
    "int4": _native.KVStorage.int4,
}


ROW_COUNTS = {
    "tokens": _native.RowCount.tokens,
    "outputs": _native.RowCount.outputs,
    "logit_rows": _native.RowCount.logits,
}


def gating(gate: a.Gate) -> Any:
    """An activation as the native side has it."""
    return _native.Gating(getattr(_native.Activation, gate.activation), gate.limit or 0.0, gate.up_offset)


def value_type(value: Value) -> Any:
    """The native element type of a value."""
    if isinstance(value.dtype, Scheme):  # codes that nobody multiplies as such lie here as the numbers they stand for
        return _native.ValueType.int8 if keeps_codes(value.dtype) else _native.ValueType.fp32
    return getattr(_native.ValueType, value.dtype)


def group_size(value: Value) -> int:
    """Columns per activation scale of a quantised value; its width otherwise."""
    width = int(value.shape[-1])
    return (value.dtype.group_size or width) if isinstance(value.dtype, Scheme) else width


def each(value: Value) -> int:
    """Rows that a value has for every token or output."""
    return prod(int(size) for size in value.shape[1:-1])


def plan(program: Program, limits: Limits, keep: tuple[str, ...], isa: str) -> BufferPlan:
    """Place every value with the sizes this tier's kernels want."""

    def value_bytes(value: Value, bounds: Mapping[str, int]) -> int:
        rows, width = each(value) * bounds[str(value.shape[0])], int(value.shape[-1])
        return int(_native.value_bytes(isa, value_type(value), rows, width, group_size(value)))

    return plan_buffers(program, limits.symbols(), keep, value_bytes)


def kv_layout(state: PagedState) -> tuple[Any, int, int, int]:
    """A layer's KV as the native side names it: storage, heads and their sizes."""
    kind = state.dtype.element if isinstance(state.dtype, Scheme) else state.dtype
    return KV_STORAGES[kind], state.kv_heads, state.head_size, state.value_head_size


def kv_piece_bytes(state: PagedState, block_size: int) -> list[int]:
    """Bytes per block of the pieces of a layer's KV, in the order of memory: keys, values, scales where it has them."""
    storage, heads, key_size, value_size = kv_layout(state)

    def of(keys: int, values: int) -> int:
        return int(_native.kv_bytes_per_block(storage, heads, keys, values, block_size))

    keys, values = of(key_size, 0), of(0, value_size)
    scales = keys + values - of(key_size, value_size)  # counted in both
    return [size for size in (keys - scales, values - scales, scales) if size]


class Lowering:
    """Builds the native executor of one program. ``values`` maps value names to native indices, ``low_ranks`` what
    adapters add to: op name -> native operation and site."""

    def __init__(
        self,
        program: Program,
        weights: WeightTable,
        linears: Mapping[str, Sequence[Any]],
        limits: Limits,
        buffers: BufferPlan,
        isa: str,
        pool: Any,
        vocabulary: int,
    ) -> None:
        self._weights, self._linears, self._isa = weights, linears, isa
        self.executor = _native.Executor(
            isa=isa,
            pool=pool,
            max_tokens=limits.max_tokens,
            max_sequences=limits.max_sequences,
            max_outputs=limits.max_outputs,
            block_size=limits.block_size,
            max_blocks=limits.max_blocks_per_sequence,
            vocabulary=vocabulary,
            arena_bytes=buffers.arena_bytes,
        )
        self._declared = declarations(program)
        self._static = {
            op.outputs[0]: self._weights.vector(op.weights[0])
            for op in plain_ops(program)
            if op.kind == "quantise" and op.weights
        }
        self.values = {name: self._add_value(self._declared[name], at) for name, at in buffers.offsets.items()}
        self._states = {
            state.name: int(self.executor.add_state(*kv_layout(state), group=state.group)) for state in program.states
        }
        self._states |= {
            state.name: int(self.executor.add_slot_state(state.shape[0] * state.shape[1]))
            for state in program.slot_states
        }
        self._rope_tables: dict[tuple[tuple[float, ...], float], int] = {}
        self.choices: dict[str, str] = {}
        self.low_ranks: dict[str, tuple[int, int]] = {}
        for op in program.ops:
            self._lower(op)

    def _lower(self, op: Op) -> None:
        if op.kind not in a.FUSED_KINDS:
            self.choices[op.name] = f"{op.kind}_{self._isa}"
        KINDS[op.kind](self, op, op.attributes)

    def _add_value(self, value: Value, offset: int | None) -> int:
        """``offset`` None: a value that lives in the open chain only."""
        rows = ROW_COUNTS[str(value.shape[0])]
        described = (rows, int(value.shape[-1]), value_type(value), group_size(value), *self._rounding(value))
        several: dict[str, Any] = {} if each(value) == 1 else {"each": each(value)}
        if offset is None:
            return int(self.executor.add_local(*described, **several))
        return int(self.executor.add_value(offset, *described, **several))

    def _rounding(self, value: Value) -> tuple[float, ...]:
        """Of codes: half their range, and their scale if it is static. Nothing for int8 in a scale of its rows."""
        if not isinstance(value.dtype, Scheme) or not keeps_codes(value.dtype):
            return ()
        static = self._static.get(value.name)
        if value.dtype.element == "int8" and static is None and not value.dtype.narrow_range:
            return ()
        return value.dtype.half_range, 0.0 if static is None else float(static[0])

    def _in(self, op: Op, index: int = 0) -> int:
        return self.values[op.inputs[index]]

    def _out(self, op: Op) -> int:
        return self.values[op.outputs[0]]

    def embed(self, op: Op, _: a.Embed) -> None:
        by = {"positions": True} if op.inputs == ("positions",) else {}
        self.executor.embed(op.name, self._out(op), self._linears[op.name][0], **by)

    def norm(self, op: Op, norm: a.Norm) -> None:
        gain = self._weights.vector(op.weights[0])
        bias = self._weights.vector(op.weights[1]) if len(op.weights) > 1 else None
        layer = norm.flavour == "layer"
        self.executor.norm(
            op.name, self._in(op), self._out(op), layer, norm.size, norm.epsilon, norm.offset, gain, bias
        )

    def linear(self, op: Op, _: a.Linear | a.Logits | a.Router | a.Linears) -> None:
        """One linear, or several of one input: a fused op's kernels are named by the ops it stands for."""
        parts = op.expansion or (op,)
        weights = [self._linears[part.name][0] for part in parts]
        self.executor.linear(op.name, self._in(op), [self._out(part) for part in parts], weights)
        for part, weight in zip(parts, weights, strict=True):
            self.choices[part.name] = _native.linear_name(self._isa, weight, input_type(self._declared[op.inputs[0]]))

    def experts(self, op: Op, _: a.Experts) -> None:
        weights = self._linears[op.name]
        self.executor.experts(op.name, self._in(op), self._in(op, 1), self._out(op), weights)
        self.choices[op.name] = _native.linear_name(self._isa, weights[0], input_type(self._declared[op.inputs[0]]))

    def route(self, op: Op, route: a.Route) -> None:
        ids, weights = (self.values[name] for name in op.outputs)
        sigmoid = route.scoring == "sigmoid"
        groups = route.groups, route.groups_chosen, route.group_best
        correction = self._weights.vector(op.weights[0]) if op.weights else None
        self.executor.route(
            op.name, self._in(op), ids, weights, sigmoid, route.normalise, route.factor, *groups, correction
        )

    def combine(self, op: Op, _: a.Combine) -> None:
        self.executor.combine(op.name, self._in(op), self._in(op, 1), self._out(op))

    def gated_linears(self, op: Op, _: a.GatedLinears) -> None:
        """The linears' results and the activation stay in a worker's scratch."""
        linears = [part for part in op.expansion if part.kind == "linear"]
        gate = op.expansion[len(linears)].attributes
        assert isinstance(gate, a.Gate)
        weights = [self._linears[part.name][0] for part in linears]
        self.executor.gated_linear(op.name, self._in(op), self._out(op), weights, gating(gate))
        for part, weight in zip(linears, weights, strict=True):
            self.choices[part.name] = _native.linear_name(self._isa, weight, input_type(self._declared[op.inputs[0]]))
        self.choices |= {part.name: f"{part.kind}_{self._isa}" for part in op.expansion[len(linears) :]}

    def row_chain(self, op: Op, _: a.RowChain) -> None:
        """The ops of the expansion run row by row; values that only they read get rows of a worker's scratch."""
        self.executor.begin_chain(op.name)
        for inner in op.expansion:
            for name in inner.outputs:
                if name not in op.outputs:
                    self.values[name] = self._add_value(self._declared[name], None)
            self._lower(inner)
        self.executor.end_chain()

    def sparse_linear(self, op: Op, _: a.SparseLinear) -> None:
        values, columns = self._weights.vector(op.weights[0]), self._weights.order(op.weights[1])
        self.executor.sparse_linear(op.name, self._in(op), self._out(op), values, columns)

    def add(self, op: Op, _: a.Add) -> None:
        if op.weights:
            row = self._weights.vector(op.weights[0])[: int(self._declared[op.outputs[0]].shape[-1])]
            self.executor.add_row(op.name, self._in(op), self._out(op), row)
        else:
            self.executor.add(op.name, self._in(op, 0), self._in(op, 1), self._out(op))

    def low_rank_add(self, op: Op, _: a.LowRankAdd | a.LowRankAdds) -> None:
        """One site, or several of one input, which are numbered in the order of the expansion."""
        parts = op.expansion or (op,)
        inputs, outputs = [self._in(part) for part in parts], [self._out(part) for part in parts]
        index = int(self.executor.low_rank_adds(op.name, self._in(parts[0], 1), inputs, outputs))
        for site, part in enumerate(parts):
            self.low_ranks[part.name] = index, site
            self.choices[part.name] = f"low_rank_add_{self._isa}"

    def scale(self, op: Op, scale: a.Scale) -> None:
        self.executor.scale(op.name, self._in(op), self._out(op), scale.factor)

    def softcap(self, op: Op, softcap: a.Softcap) -> None:
        self.executor.softcap(op.name, self._in(op), self._out(op), softcap.limit)

    def cast(self, op: Op, _: a.Cast) -> None:
        self.executor.cast(op.name, self._in(op), self._out(op))

    def quantise(self, op: Op, quantise: a.Quantise) -> None:
        scheme = quantise.scheme
        if keeps_codes(scheme):
            self.executor.quantise(op.name, self._in(op), self._out(op))
            return
        static = [float(self._weights.vector(name)[0]) for name in op.weights]
        self.executor.round(
            op.name,
            self._in(op),
            self._out(op),
            scheme.element == "fp8_e4m3",
            scheme.symmetric,
            scheme.dynamic,
            group_size(self._declared[op.outputs[0]]),
            *static,
        )

    def dequantise(self, op: Op, _: a.Dequantise) -> None:
        self.executor.dequantise(op.name, self._in(op), self._out(op))

    def rope(self, op: Op, rope: a.Rope) -> None:
        key = (rope.inverse_frequencies, rope.attention_factor)
        if key not in self._rope_tables:
            self._rope_tables[key] = self.executor.add_rope_table(list(rope.inverse_frequencies), rope.attention_factor)
        interleaved = rope.style == "interleaved"
        self.executor.rope(
            op.name, self._in(op), self._out(op), rope.head_size, rope.rotary_size, interleaved, self._rope_tables[key]
        )

    def kv_write(self, op: Op, _: a.KVWrite) -> None:
        self.executor.kv_write(op.name, self._in(op, 0), self._in(op, 1), self._states[op.states[0]])

    def attention(self, op: Op, attention: a.Attention) -> None:
        slopes = None
        if attention.alibi_slopes is not None:
            slopes = self._weights.keep(np.array(attention.alibi_slopes, np.float32))
        self.executor.attention(
            op.name,
            self._in(op),
            self._out(op),
            self._states[op.states[0]],
            attention.heads,
            attention.arithmetic == "bf16",
            attention.scale,
            attention.window or 0,
            attention.softcap or 0.0,
            slopes,
            self._weights.vector(op.weights[0]) if op.weights else None,
            attention.full,
        )

    def conv(self, op: Op, conv: a.Conv) -> None:
        taps = self._transposed(self._weights.vector(op.weights[0]), conv.taps)
        bias = self._weights.vector(op.weights[1]) if len(op.weights) > 1 else None
        self.executor.conv(op.name, self._in(op), self._out(op), self._states[op.states[0]], taps, bias)

    def scan(self, op: Op, scan: a.Scan) -> None:
        """What heads share is written out for each of their channels."""
        decay, skip, *bias = (self._weights.vector(name) for name in op.weights)
        heads = skip.size
        decays = np.repeat(-np.exp(decay).reshape(heads, -1), scan.head_size, axis=0)
        skip, *bias = (self._weights.keep(np.repeat(each, scan.head_size)) for each in (skip, *bias))
        x, steps, inward, outward = (self._in(op, index) for index in range(4))
        self.executor.scan(
            op.name,
            x,
            steps,
            inward,
            outward,
            self._out(op),
            self._states[op.states[0]],
            scan.states,
            scan.head_size,
            scan.groups,
            self._transposed(decays, decays.shape[1]),
            skip,
            bias[0] if bias else None,
        )

    def _transposed(self, values: Array, columns: int) -> Array:
        """[channels, columns] with all channels of a column side by side, flat."""
        return self._weights.keep(np.ascontiguousarray(values.reshape(-1, columns).T).reshape(-1))

    def gate(self, op: Op, gate: a.Gate) -> None:
        if gate.pairs:
            self.executor.gate_pairs(op.name, self._in(op), self._out(op), gating(gate))
            return
        up = self._in(op, 1) if len(op.inputs) > 1 else -1
        self.executor.gate(op.name, self._in(op), up, self._out(op), gating(gate))

    def gather(self, op: Op, _: a.Gather) -> None:
        self.executor.gather(op.name, self._in(op), self._out(op))

    def leading(self, op: Op, _: a.Leading) -> None:
        self.executor.leading(op.name, self._in(op), self._out(op))

    def hadamard(self, op: Op, hadamard: a.Hadamard) -> None:
        self.executor.hadamard(op.name, self._in(op), self._out(op), hadamard.size)

    def join_heads(self, op: Op, join: a.JoinHeads) -> None:
        self.executor.join_heads(op.name, self._in(op), self._in(op, 1), self._out(op), join.heads, join.shared)

    def order_columns(self, op: Op, _: a.OrderColumns) -> None:
        self.executor.order_columns(op.name, self._in(op), self._out(op), self._weights.order(op.weights[0]))


KINDS: dict[str, Callable[[Lowering, Op, Any], None]] = {
    "embed": Lowering.embed,
    "norm": Lowering.norm,
    "linear": Lowering.linear,
    "logits": Lowering.linear,
    "router": Lowering.linear,
    "experts": Lowering.experts,
    "route": Lowering.route,
    "combine": Lowering.combine,
    "sparse_linear": Lowering.sparse_linear,
    "add": Lowering.add,
    "low_rank_add": Lowering.low_rank_add,
    "scale": Lowering.scale,
    "softcap": Lowering.softcap,
    "cast": Lowering.cast,
    "quantise": Lowering.quantise,
    "dequantise": Lowering.dequantise,
    "rope": Lowering.rope,
    "kv_write": Lowering.kv_write,
    "attention": Lowering.attention,
    "conv": Lowering.conv,
    "scan": Lowering.scan,
    "gate": Lowering.gate,
    "gather": Lowering.gather,
    "leading": Lowering.leading,
    "order_columns": Lowering.order_columns,
    "join_heads": Lowering.join_heads,
    "hadamard": Lowering.hadamard,
    "linears": Lowering.linear,
    "gated_linears": Lowering.gated_linears,
    "low_rank_adds": Lowering.low_rank_add,
    "row_chain": Lowering.row_chain,
}


def input_type(value: Value) -> Any:
    """Which linear kernel family reads a value."""
    return {
        _native.ValueType.fp32: _native.InputType.fp32,
        _native.ValueType.bf16: _native.InputType.bf16,
        _native.ValueType.int8: _native.InputType.int8,
    }[value_type(value)]
