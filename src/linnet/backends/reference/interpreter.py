# SPDX-License-Identifier: Apache-2.0
"""Runs a range of a Program op by op. Values live in a dict from their writing to their last use."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch

from linnet.backends.interface import Source
from linnet.backends.reference import experts, ops, recurrent
from linnet.backends.reference.attention import FunctionalMemory, Memory, attention
from linnet.backends.reference.weights import LoadedWeight, WeightTable
from linnet.errors import ConfigError, UnsupportedError
from linnet.program.adapters import LowRank
from linnet.program.program import Op, Program, Segment
from linnet.program.traverse import expert_of, multiplied, sent, tapped
from linnet.schemes.scheme import DenseType, Scheme

if TYPE_CHECKING:
    from linnet.schemes.packed_weight import PackedWeight

Kind = TypeVar("Kind", torch.Tensor, ops.QuantisedValue)
RuntimeValue = torch.Tensor | ops.QuantisedValue


Adapters = Mapping[int, Mapping[str, LowRank]]
"""What each adapter adds, by the name of the op that adds it."""
_NO_ADAPTERS: Adapters = MappingProxyType({})


class Tap(Protocol):
    """Called as soon as a tapped value exists."""

    def __call__(self, name: str, x: torch.Tensor, tokens: torch.Tensor | None = None, /) -> None:
        """fp32 [rows, width]; of an expert's rows (``expert_tap``) also whose ``tokens`` [rows] they are."""


def run_ops(
    program: Program,
    start: int,
    stop: int,
    inputs: Mapping[str, RuntimeValue],
    outputs: Iterable[str],
    weights: WeightTable,
    memory: Memory,
    taps: Iterable[str] = (),
    on_tap: Tap | None = None,
    adapters: Adapters = _NO_ADAPTERS,
) -> dict[str, RuntimeValue]:
    """Execute ops [start, stop) given the values that cross into the range; returns ``outputs``.

    Memory: a value is dropped after its last use in the range unless it is an output.
    """
    wanted, asked = set(outputs), set(taps)
    values: dict[str, RuntimeValue] = dict(inputs)
    dtypes = {value.name: value.dtype for value in program.values}
    last_use = {name: index for index in range(start, stop) for name in program.ops[index].inputs}
    for name in asked & values.keys():
        _emit(name, values[name], on_tap)
    routed = _Routed(program, asked, on_tap)
    routed.emit(values)
    for index in range(start, stop):
        whole = program.ops[index]
        for op in whole.expansion or (whole,):
            if op.kind == "low_rank_add":
                values[op.outputs[0]] = _adapted(op, values, adapters)
            else:
                _execute(op, values, dtypes, weights, memory)
        for name in whole.outputs:
            if name in asked:
                _emit(name, values[name], on_tap)
        routed.emit(values)
        inner = (name for op in whole.expansion for name in op.outputs)
        for name in (*whole.inputs, *whole.outputs, *inner):
            if last_use.get(name, index) <= index and name not in wanted and name not in routed.held:
                values.pop(name, None)
    missing = wanted - values.keys()
    if missing:
        raise ConfigError(f"ops [{start}, {stop}) do not produce {', '.join(sorted(missing))}")
    return {name: values[name] for name in wanted}


def run_segment(
    program: Program,
    segment: Segment,
    inputs: Mapping[str, torch.Tensor],
    source: Source | None = None,
    overrides: "Mapping[str, torch.Tensor | PackedWeight] | None" = None,
    taps: Iterable[str] = (),
    on_tap: Tap | None = None,
) -> dict[str, torch.Tensor]:
    """One Segment on whole sequences with functional KV, so that autograd works: the compression walk, distillation.

    ``inputs``: the segment's boundary values and those program inputs it reads (see ``whole_sequence_inputs``);
    ``overrides``: weights by weight name, winning over ``source``.
    """
    table = WeightTable(program, source, overrides)
    memory = FunctionalMemory.of(program)
    return run_ops(program, segment.start, segment.stop, inputs, segment.outputs, table, memory, taps, on_tap)  # type: ignore[return-value]


def whole_sequence_inputs(token_ids: torch.Tensor, lengths: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """Program inputs for int32 [rows, tokens], every row a whole sequence, or all of them together sequences of these
    ``lengths``, one after the other: every row of the result is an output row; no paging."""
    rows, tokens = token_ids.shape
    int32 = torch.int32
    of_each = torch.tensor([tokens] * rows if lengths is None else list(lengths), dtype=int32)
    starts = torch.nn.functional.pad(of_each.cumsum(0, dtype=int32), (1, 0))
    everyone = torch.arange(rows * tokens, dtype=int32)
    return {
        "token_ids": token_ids.reshape(-1).to(int32),
        "positions": everyone - starts[:-1].repeat_interleave(of_each),
        "kv_slots": everyone,
        "query_start": starts,
        "context_lengths": of_each,
        "block_tables": torch.zeros((len(of_each), 1), dtype=int32),
        "output_rows": everyone.clone(),
        "state_slots": torch.arange(len(of_each), dtype=int32),
    }


class _Routed:
    """Taps of what experts read: told once the value and the choice of experts are both there, and held until then."""

    def __init__(self, program: Program, asked: Iterable[str], on_tap: Tap | None) -> None:
        own = [name for name in asked if tapped(name) != name]
        choices = sent(program) if own else {}
        self._waiting: dict[tuple[str, str], list[str]] = {}
        for name in sorted(own):
            self._waiting.setdefault((tapped(name), choices[tapped(name)]), []).append(name)
        self._on_tap = on_tap

    @property
    def held(self) -> set[str]:
        """Values that somebody still waits for."""
        return {name for pair in self._waiting for name in pair}

    def emit(self, values: Mapping[str, RuntimeValue]) -> None:
        """Tell what has become known."""
        for value, choice in [pair for pair in self._waiting if values.keys() >= set(pair)]:
            ids = values[choice]
            assert isinstance(ids, torch.Tensor)
            for name in self._waiting.pop((value, choice)):
                places = experts.rows_of(ids, expert_of(name))
                assert self._on_tap is not None
                rows = experts.read_by(values[value], ids, places)
                self._on_tap(name, _plain(rows), places // ids.shape[1])


def _plain(value: RuntimeValue) -> torch.Tensor:
    return ops.dequantise(value) if isinstance(value, ops.QuantisedValue) else value.float()


def _emit(name: str, value: RuntimeValue, on_tap: Tap | None) -> None:
    if on_tap is None:
        raise ConfigError(f"value {name} is tapped but nobody receives it")
    on_tap(name, _plain(value))


def _execute(
    op: Op,
    values: dict[str, RuntimeValue],
    dtypes: Mapping[str, DenseType | Scheme],
    weights: WeightTable,
    memory: Memory,
) -> None:
    result = _compute(op, [values[name] for name in op.inputs], dtypes, weights, memory)
    if isinstance(result, tuple):
        values.update(zip(op.outputs, result, strict=True))
    elif result is not None:
        values[op.outputs[0]] = result


def _adapted(op: Op, values: Mapping[str, RuntimeValue], adapters: Adapters) -> torch.Tensor:
    y, x, own, *rows = [_of_kind(torch.Tensor, values[name], op) for name in op.inputs]
    return ops.low_rank_add(y, x, own[rows[0].long()] if rows else own, op.name, adapters)


def _of_kind(kind: type[Kind], value: RuntimeValue, op: Op) -> Kind:
    if not isinstance(value, kind):
        raise UnsupportedError(f"{op.name} ({op.kind}) takes a {kind.__name__}, not a {type(value).__name__}")
    return value


def _loaded(weights: WeightTable, name: str, bias: str | None) -> tuple[LoadedWeight, torch.Tensor | None]:
    return weights.get(name), None if bias is None else weights.dense(bias)


def _compute(
    op: Op,
    given: Sequence[RuntimeValue],
    dtypes: Mapping[str, DenseType | Scheme],
    weights: WeightTable,
    memory: Memory,
) -> RuntimeValue | tuple[RuntimeValue, ...] | None:
    attributes: Any = op.attributes
    if op.kind in ("linear", "logits", "router"):
        bias = weights.dense(op.weights[1]) if len(op.weights) > 1 else None
        return ops.linear(given[0], weights.get(op.weights[0]), bias)
    if op.kind == "experts":
        ids = _of_kind(torch.Tensor, given[1], op)
        own = multiplied(op)
        biases = op.weights[len(own) :] or (None,) * len(own)
        return experts.multiply(
            given[0], ids, [partial(_loaded, weights, *names) for names in zip(own, biases, strict=True)]
        )
    if op.kind == "dequantise":
        return ops.dequantise(_of_kind(ops.QuantisedValue, given[0], op))
    x = [_of_kind(torch.Tensor, value, op) for value in given]
    match op.kind:
        case "embed":
            return ops.embed(x[0], weights.get(op.weights[0]))
        case "norm":
            bias = weights.dense(op.weights[1]) if len(op.weights) > 1 else None
            return ops.norm(x[0], attributes, weights.dense(op.weights[0]), bias)
        case "sparse_linear":
            return ops.sparse_linear(x[0], weights.dense(op.weights[0]), weights.dense(op.weights[1]))
        case "add":
            return x[0].float() + (x[1].float() if len(x) > 1 else weights.dense(op.weights[0])[:1])
        case "scale":
            return torch.mul(x[0].float(), attributes.factor)
        case "softcap":
            return ops.softcap(x[0].float(), attributes.limit)
        case "cast":
            return x[0].to(ops.TORCH_TYPES[cast(DenseType, dtypes[op.outputs[0]])])
        case "quantise":
            return ops.quantise(x[0], attributes.scheme, *(weights.dense(name) for name in op.weights))
        case "rope":
            return ops.rope(x[0], x[1], attributes)
        case "kv_write":
            memory.write(op.states[0], x[0], x[1], x[2])
            return None
        case "attention":
            query, _, query_start, context_lengths, block_tables = x
            sinks = weights.dense(op.weights[0]) if op.weights else None
            state = op.states[0]
            return attention(query, query_start, context_lengths, block_tables, memory, state, attributes, sinks)
        case "conv":
            bias = weights.dense(op.weights[1]) if len(op.weights) > 1 else None
            return recurrent.conv(x[0], weights.dense(op.weights[0]), bias, x[1:], memory, op.states[0])
        case "scan":
            return recurrent.scan(x, [weights.dense(name) for name in op.weights], attributes, memory, op.states[0])
        case "gate":
            return ops.gate(x[0], x[1] if len(x) > 1 else None, attributes)
        case "gather":
            return x[0][x[1].long()]
        case "route":
            return experts.route(x[0].float(), attributes, weights.dense(op.weights[0]) if op.weights else None)
        case "combine":
            return experts.combine(x[0], x[1])
        case "hadamard":
            return ops.hadamard(x[0].float(), attributes.size)
        case "join_heads":
            return ops.join_heads(x[0].float(), x[1].float(), attributes)
        case "order_columns":
            return x[0][:, weights.dense(op.weights[0]).long()]
        case _:
            raise UnsupportedError(f"the reference backend does not know op kind {op.kind!r} ({op.name})")
