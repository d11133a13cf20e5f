# SPDX-License-Identifier: Apache-2.0
"""What each op kind takes and gives: operand counts, shapes and dtypes, and attributes of their declared types."""

import math
import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from linnet.program import attributes as a
from linnet.program.program import Op, PagedState, SlotState, Value, Weight
from linnet.schemes.scheme import LinearScheme, Scheme


class ProgramError(ValueError):
    """A program breaks its contract. An internal invariant, or a damaged program file; never a user's setting."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ProgramError(message)


def check_types(record: object) -> None:
    """Every field of a frozen record (attributes, schemes) holds a value of its annotated type."""
    hints = get_type_hints(type(record))
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if not _fits(value, hints[field.name]):
            where = f"{type(record).__name__}.{field.name}"
            raise ProgramError(f"{where} is {value!r}, which is not {hints[field.name]}")


def _fits(value: object, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    if annotation in (int, bool, str, type(None)):
        return type(value) is annotation
    return isinstance(value, annotation)


Shape = tuple[int | str, ...]
SLOT_KINDS = ("conv", "scan")
"""Kinds that carry a state from token to token; they read it and write it."""

MOST_EXPERTS = 1024
"""Of one layer: what backends have room for while they choose."""


class _Signature:
    """An op with its operands resolved; the helpers say what does not fit."""

    def __init__(
        self, op: Op, values: dict[str, Value], weights: dict[str, Weight], states: dict[str, PagedState | SlotState]
    ) -> None:
        self.op = op
        self.inputs = [values[name] for name in op.inputs]
        self.outputs = [values[name] for name in op.outputs]
        self.weights = [weights[name] for name in op.weights]
        of_kind = SlotState if op.kind in SLOT_KINDS else PagedState
        self.states: list[Any] = [states[name] for name in op.states]
        fits = all(isinstance(state, of_kind) for state in self.states)
        require(bool(op.expansion) or fits, f"op {op.name} ({op.kind}) keeps what it knows in a {of_kind.__name__}")

    def count(self, what: str, low: int, high: int | None = None) -> None:
        found = len(getattr(self, what))
        wanted = f"{low}" if high is None or high == low else f"{low} to {high}"
        good = low <= found <= (low if high is None else high)
        require(good, f"op {self.op.name} ({self.op.kind}) has {found} {what}, expected {wanted}")

    def counts(self, inputs: int, weights: tuple[int, int] = (0, 0), states: int = 0, outputs: int = 1) -> None:
        self.count("inputs", inputs)
        self.count("weights", *weights)
        self.count("states", states)
        self.count("outputs", outputs)

    def shape(self, item: Value | Weight, expected: Shape) -> None:
        good = tuple(item.shape) == expected
        require(good, f"op {self.op.name} ({self.op.kind}): {item.name} is {item.shape}, expected {expected}")

    def dtype(self, item: Value, *accepted: str) -> None:
        found = "a scheme" if isinstance(item.dtype, Scheme) else item.dtype
        good = found in accepted
        require(good, f"op {self.op.name} ({self.op.kind}): {item.name} is {found}, accepted {', '.join(accepted)}")

    def dense(self, *weights: Weight) -> None:
        for weight in weights:
            good = not isinstance(weight.dtype, LinearScheme) and weight.dtype != "int32"
            require(good, f"op {self.op.name} ({self.op.kind}): weight {weight.name} must be dense floating point")

    def index(self, item: Value, *shape: int | str) -> None:
        self.shape(item, shape)
        self.dtype(item, "int32")

    def width(self, item: Value) -> int:
        size = item.shape[-1]
        good = len(item.shape) == 2 and isinstance(size, int)
        require(good, f"op {self.op.name} ({self.op.kind}): {item.name} is {item.shape}, expected [rows, width]")
        return int(size)

    def matches(self, item: Value, dtype: str = "fp32") -> None:
        """Output has the shape of ``item`` and the given dtype."""
        self.shape(self.outputs[0], tuple(item.shape))
        self.dtype(self.outputs[0], dtype)


def check_op(
    op: Op, values: dict[str, Value], weights: dict[str, Weight], states: dict[str, PagedState | SlotState]
) -> None:
    """Raises ProgramError if the op's attributes or operands do not fit its kind."""
    check_types(op.attributes)
    _RULES[op.kind](_Signature(op, values, weights, states), op.attributes)


def _embed(s: _Signature, _: Any) -> None:
    s.counts(1, weights=(1, 1))
    s.index(s.inputs[0], "tokens")
    s.shape(s.outputs[0], ("tokens", s.weights[0].shape[-1]))
    s.dtype(s.outputs[0], "fp32")


def _norm(s: _Signature, norm: a.Norm) -> None:
    s.counts(1, weights=(1, 2))
    s.dtype(s.inputs[0], "fp32")
    good = norm.size > 0 and s.width(s.inputs[0]) % norm.size == 0
    require(norm.epsilon > 0, f"op {s.op.name}: epsilon {norm.epsilon}; accepted is more than 0")
    require(good, f"op {s.op.name}: runs of {norm.size} do not tile a width of {s.inputs[0].shape[-1]}")
    width = s.width(s.inputs[0])
    shapes: tuple[Shape, ...] = ((norm.size,), (width,), (width // norm.size, norm.size))
    shape = next((shape for shape in shapes if tuple(s.weights[0].shape) == shape), shapes[0])
    for weight in s.weights:
        s.shape(weight, shape)
    s.dense(*s.weights)
    s.matches(s.inputs[0])


def _linear(s: _Signature, _: Any) -> None:
    s.counts(1, weights=(1, 2))
    s.dtype(s.inputs[0], "fp32", "bf16", "fp16", "a scheme")
    outputs = s.width(s.outputs[0])
    s.shape(s.weights[0], (outputs, s.width(s.inputs[0])))
    for bias in s.weights[1:]:
        s.shape(bias, (outputs,))
        s.dense(bias)
    s.shape(s.outputs[0], (s.inputs[0].shape[0], outputs))
    s.dtype(s.outputs[0], "fp32")


def _sparse_linear(s: _Signature, _: Any) -> None:
    s.counts(1, weights=(2, 2))
    s.dtype(s.inputs[0], "fp32")
    values, columns = s.weights
    s.width(s.inputs[0])
    s.dense(values)
    good = len(values.shape) == 2 and values.shape[0] == s.width(s.outputs[0]) and columns.dtype == "int32"
    require(good, f"op {s.op.name}: {values.name} and {columns.name} are no few weights (int32 columns) of each output")
    s.shape(columns, tuple(values.shape))
    s.shape(s.outputs[0], (s.inputs[0].shape[0], values.shape[0]))
    s.dtype(s.outputs[0], "fp32")


def _router(s: _Signature, _: Any) -> None:
    _linear(s, _)
    s.dtype(s.inputs[0], "fp32")


def _route(s: _Signature, route: a.Route) -> None:
    s.counts(1, weights=(0, 1), outputs=2)
    s.dtype(s.inputs[0], "fp32")
    experts = s.width(s.inputs[0])
    for correction in s.weights:
        s.shape(correction, (experts,))
        s.dense(correction)
    good = 0 < route.chosen <= experts <= MOST_EXPERTS
    require(good, f"op {s.op.name}: {route.chosen} of {experts} experts; there are at most {MOST_EXPERTS}")
    grouped = 0 < route.groups_chosen <= route.groups <= experts and experts % route.groups == 0
    few = experts // max(route.groups, 1) * route.groups_chosen >= route.chosen
    require(grouped and few, f"op {s.op.name}: {route.groups_chosen} of {route.groups} groups of {experts} experts")
    ranks = 0 < route.group_best <= experts // route.groups
    require(ranks, f"op {s.op.name}: {route.group_best} of {experts // route.groups} experts of a group")
    for output, dtype in zip(s.outputs, ("int32", "fp32"), strict=True):
        s.shape(output, (s.inputs[0].shape[0], route.chosen))
        s.dtype(output, dtype)


def _experts(s: _Signature, experts: a.Experts) -> None:
    weights = experts.experts * (2 if experts.biases else 1)
    s.counts(2, weights=(weights, weights))
    x, ids = s.inputs
    s.dtype(x, "fp32", "bf16", "fp16", "a scheme")
    s.dtype(ids, "int32")
    rows, chosen = ids.shape[0], s.width(ids)
    require(chosen <= experts.experts, f"op {s.op.name}: {chosen} of {experts.experts} experts")
    outputs, columns = s.outputs[0].shape[-1], x.shape[-1]
    s.shape(x, (rows, columns) if len(x.shape) == 2 else (rows, chosen, columns))
    for weight in s.weights[: experts.experts]:
        s.shape(weight, (outputs, columns))
    for bias in s.weights[experts.experts :]:
        s.shape(bias, (outputs,))
        s.dense(bias)
    s.shape(s.outputs[0], (rows, chosen, outputs))
    s.dtype(s.outputs[0], "fp32")


def _combine(s: _Signature, _: Any) -> None:
    s.counts(2)
    x, weights = s.inputs
    for value in (x, weights, s.outputs[0]):
        s.dtype(value, "fp32")
    rows, chosen = weights.shape[0], s.width(weights)
    s.shape(x, (rows, x.shape[-1]) if chosen == 1 and len(x.shape) == 2 else (rows, chosen, x.shape[-1]))
    s.shape(s.outputs[0], (rows, x.shape[-1]))


def _elementwise(inputs: int) -> Callable[[_Signature, Any], None]:
    def rule(s: _Signature, _: Any) -> None:
        s.counts(inputs)
        for value in s.inputs:
            s.dtype(value, "fp32")
            s.matches(value)

    return rule


def _add(s: _Signature, _: Any) -> None:
    if len(s.inputs) == 2:
        _elementwise(2)(s, _)
        return
    s.counts(1, weights=(1, 1))
    s.dtype(s.inputs[0], "fp32")
    s.matches(s.inputs[0])
    s.shape(s.weights[0], (s.weights[0].shape[0], s.width(s.inputs[0])))
    s.dense(*s.weights)


def _low_rank_add(s: _Signature, _: Any) -> None:
    rows = s.outputs[0].shape[0]
    s.counts(3 if rows == "tokens" else 4)
    y, x, adapters, *rest = s.inputs
    for value in (y, x):
        s.dtype(value, "fp32")
    s.shape(x, (rows, s.width(x)))
    s.index(adapters, "tokens")
    for value in rest:
        s.index(value, "outputs")
    s.width(y)
    s.matches(y)


def _softcap(s: _Signature, softcap: a.Softcap) -> None:
    _elementwise(1)(s, softcap)
    require(softcap.limit > 0, f"op {s.op.name}: limit {softcap.limit}; accepted is more than 0")


def _cast(s: _Signature, _: Any) -> None:
    s.counts(1)
    s.dtype(s.inputs[0], "fp32", "bf16", "fp16")
    s.dtype(s.outputs[0], "fp32", "bf16", "fp16")
    s.shape(s.outputs[0], tuple(s.inputs[0].shape))


def _quantise(s: _Signature, quantise: a.Quantise) -> None:
    parameters = 0 if quantise.scheme.dynamic else 1 if quantise.scheme.symmetric else 2
    s.counts(1, weights=(parameters, parameters))
    for weight in s.weights:
        s.shape(weight, (1,))
        s.dense(weight)
    s.dtype(s.inputs[0], "fp32")
    s.shape(s.outputs[0], tuple(s.inputs[0].shape))
    require(s.outputs[0].dtype == quantise.scheme, f"op {s.op.name}: {s.outputs[0].name} has another scheme")


def _dequantise(s: _Signature, _: Any) -> None:
    s.counts(1)
    s.dtype(s.inputs[0], "a scheme")
    s.matches(s.inputs[0])


def _rope(s: _Signature, rope: a.Rope) -> None:
    s.counts(2)
    s.dtype(s.inputs[0], "fp32")
    s.index(s.inputs[1], "tokens")
    whole = rope.head_size > 0 and s.width(s.inputs[0]) % rope.head_size == 0
    require(whole, f"op {s.op.name}: heads of {rope.head_size} do not tile a width of {s.inputs[0].shape[-1]}")
    pairs = 0 < rope.rotary_size <= rope.head_size and rope.rotary_size == 2 * len(rope.inverse_frequencies)
    require(pairs, f"op {s.op.name}: {len(rope.inverse_frequencies)} frequencies for {rope.rotary_size} elements")
    s.matches(s.inputs[0])


def _kv_write(s: _Signature, _: Any) -> None:
    s.counts(3, states=1, outputs=0)
    state = s.states[0]
    s.shape(s.inputs[0], ("tokens", state.kv_heads * state.head_size))
    s.shape(s.inputs[1], ("tokens", state.kv_heads * state.value_head_size))
    for value in s.inputs[:2]:
        s.dtype(value, "fp32")
    s.index(s.inputs[2], "tokens")


def _attention(s: _Signature, attention: a.Attention) -> None:
    s.counts(5, weights=(0, 1), states=1)
    for sinks in s.weights:
        s.shape(sinks, (attention.heads,))
        s.dense(sinks)
    state, name = s.states[0], s.op.name
    same = (attention.kv_heads, attention.head_size) == (state.kv_heads, state.head_size)
    require(same, f"op {name}: heads differ from those of state {state.name}")
    grouped = attention.kv_heads > 0 and attention.heads > 0 and attention.heads % attention.kv_heads == 0
    require(grouped, f"op {name}: {attention.heads} heads do not share {attention.kv_heads} KV heads evenly")
    slopes = attention.alibi_slopes is None or len(attention.alibi_slopes) == attention.heads
    require(slopes, f"op {name}: not one slope per head")
    capped = attention.softcap is None or attention.softcap > 0
    require(capped, f"op {name}: softcap {attention.softcap}; accepted is more than 0")
    require(attention.window is None or attention.window > 0, f"op {name}: window {attention.window}")
    require(not attention.full or attention.window is None, f"op {name}: a window, and every key is read")
    s.shape(s.inputs[0], ("tokens", attention.heads * attention.head_size))
    s.dtype(s.inputs[0], "fp32")
    s.index(s.inputs[1], "tokens")
    s.index(s.inputs[2], "sequences_plus_one")
    s.index(s.inputs[3], "sequences")
    s.index(s.inputs[4], "sequences", "blocks")
    s.shape(s.outputs[0], ("tokens", attention.heads * state.value_head_size))
    s.dtype(s.outputs[0], "fp32")


def _carried(s: _Signature, first: int) -> int:
    """The width of x and y; inputs from ``first`` on say which rows belong to which sequence."""
    width = s.width(s.inputs[0])
    for value in s.inputs[:first]:
        s.dtype(value, "fp32")
    s.shape(s.inputs[0], ("tokens", width))
    s.index(s.inputs[first], "sequences_plus_one")
    s.index(s.inputs[first + 1], "tokens")
    s.index(s.inputs[first + 2], "sequences")
    s.matches(s.inputs[0])
    s.dense(*s.weights)
    return width


def _conv(s: _Signature, conv: a.Conv) -> None:
    s.counts(4, weights=(1, 2), states=1)
    width, name = _carried(s, 1), s.op.name
    require(conv.taps > 1, f"op {name}: {conv.taps} taps; accepted is 2 or more")
    s.shape(s.weights[0], (width, 1, conv.taps))
    for bias in s.weights[1:]:
        s.shape(bias, (width,))
    require(s.states[0].shape == (conv.taps - 1, width), f"op {name}: state {s.states[0].name} has another shape")


def _scan(s: _Signature, scan: a.Scan) -> None:
    s.counts(7, weights=(2, 3), states=1)
    width, name = _carried(s, 4), s.op.name
    tiled = scan.head_size > 0 and scan.groups > 0 and width % scan.head_size == 0 and width % scan.groups == 0
    require(tiled, f"op {name}: heads of {scan.head_size} or {scan.groups} groups do not tile a width of {width}")
    heads = width // scan.head_size
    s.shape(s.inputs[1], ("tokens", heads))
    for value in s.inputs[2:4]:
        s.shape(value, ("tokens", scan.groups * scan.states))
    decay, *others = s.weights
    s.shape(decay, (heads,) if len(decay.shape) == 1 else (heads, scan.states))
    for weight in others:
        s.shape(weight, (heads,))
    require(s.states[0].shape == (scan.states, width), f"op {name}: state {s.states[0].name} has another shape")


def _gate(s: _Signature, gate: a.Gate) -> None:
    s.count("inputs", 1, 1 if gate.pairs else 2)
    if gate.pairs:
        s.counts(1)
        *rows, width = s.inputs[0].shape
        require(isinstance(width, int) and width % 2 == 0, f"op {s.op.name}: {width} columns hold no pairs")
        s.dtype(s.inputs[0], "fp32")
        s.dtype(s.outputs[0], "fp32")
        s.shape(s.outputs[0], (*rows, int(width) // 2))
    else:
        _elementwise(len(s.inputs))(s, gate)
    plain = gate.limit is None and gate.up_offset == 0
    both = gate.pairs or len(s.inputs) == 2
    require(plain or both, f"op {s.op.name}: a limit or an offset without a second input")
    require(gate.limit is None or gate.limit > 0, f"op {s.op.name}: limit {gate.limit}; accepted is more than 0")


def _gather(s: _Signature, _: Any) -> None:
    s.counts(2)
    s.dtype(s.inputs[0], "fp32")
    s.index(s.inputs[1], "outputs")
    s.shape(s.outputs[0], ("outputs", s.width(s.inputs[0])))
    s.dtype(s.outputs[0], "fp32")


def _leading(s: _Signature, _: Any) -> None:
    s.counts(1)
    s.dtype(s.inputs[0], "fp32")
    s.shape(s.inputs[0], ("outputs", s.width(s.inputs[0])))
    s.shape(s.outputs[0], ("logit_rows", s.width(s.inputs[0])))
    s.dtype(s.outputs[0], "fp32")


def _order_columns(s: _Signature, _: Any) -> None:
    s.counts(1, weights=(1, 1))
    s.dtype(s.inputs[0], "fp32")
    s.shape(s.weights[0], (s.width(s.inputs[0]),))
    good = s.weights[0].dtype == "int32"
    require(good, f"op {s.op.name}: weight {s.weights[0].name} is no order of columns (int32)")
    s.matches(s.inputs[0])


def _join_heads(s: _Signature, join: a.JoinHeads) -> None:
    s.counts(2)
    for value in (*s.inputs, s.outputs[0]):
        s.dtype(value, "fp32")
    first, second = (s.width(value) for value in s.inputs)
    rows, parts = s.inputs[1].shape[0], 1 if join.shared else join.heads
    tiled = join.heads > 0 and first % parts == 0 and second % join.heads == 0
    require(tiled, f"op {s.op.name}: widths of {first} and {second} are not of {join.heads} heads")
    s.shape(s.inputs[0], (rows, first))
    s.shape(s.outputs[0], (rows, first // parts * join.heads + second))


def _hadamard(s: _Signature, hadamard: a.Hadamard) -> None:
    _elementwise(1)(s, hadamard)
    power = hadamard.size > 1 and hadamard.size & (hadamard.size - 1) == 0
    require(power, f"op {s.op.name}: size {hadamard.size}; accepted are powers of two from 2 on")
    good = s.width(s.inputs[0]) % hadamard.size == 0
    require(good, f"op {s.op.name}: runs of {hadamard.size} do not tile a width of {s.inputs[0].shape[-1]}")


def _fused(_: _Signature, __: Any) -> None:
    """Every op of the expansion is checked by itself, and what they make together by ``check_fused``."""


_RULES: dict[str, Callable[[_Signature, Any], None]] = {
    "embed": _embed,
    "norm": _norm,
    "linear": _linear,
    "sparse_linear": _sparse_linear,
    "logits": _linear,
    "router": _router,
    "route": _route,
    "experts": _experts,
    "combine": _combine,
    "add": _add,
    "low_rank_add": _low_rank_add,
    "scale": _elementwise(1),
    "softcap": _softcap,
    "cast": _cast,
    "quantise": _quantise,
    "dequantise": _dequantise,
    "rope": _rope,
    "kv_write": _kv_write,
    "attention": _attention,
    "conv": _conv,
    "scan": _scan,
    "gate": _gate,
    "gather": _gather,
    "leading": _leading,
    "order_columns": _order_columns,
    "join_heads": _join_heads,
    "hadamard": _hadamard,
    "linears": _fused,
    "gated_linears": _fused,
    "low_rank_adds": _fused,
    "row_chain": _fused,
}
