# SPDX-License-Identifier: Apache-2.0
"""What an op of an executed Program must read, write and multiply in one step, counted from the Program alone.

Every byte is counted once per op, however often a kernel reads it: rows of the values that enter and leave (a fused
op's inner ones never reach memory), weights as stored, keys and values as stored. Indices are not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from conformance import Steps
from linnet.program.attributes import Attention
from linnet.program.plan_buffers import resolve_shape
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations
from linnet.schemes.scheme import DENSE_BITS, Scheme

SCALE_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Of one op in one step. ``cold_bytes``: weights, keys and values, which a step finds in memory, not in a cache.

    ``element``: what is multiplied (int8, bf16, fp32), or None where nothing is worth counting.
    """

    cold_bytes: int
    warm_bytes: int
    macs: int = 0
    element: str | None = None

    @property
    def total_bytes(self) -> int:
        """Read and written."""
        return self.cold_bytes + self.warm_bytes


def value_bytes(value: Value, symbols: dict[str, int]) -> int:
    """Codes and scales of a quantised value, elements of any other."""
    rows, width = resolve_shape(value, symbols)
    if isinstance(value.dtype, Scheme):
        groups = -(-width // value.dtype.group_size) if value.dtype.group_size else 1
        return rows * (width * value.dtype.bits // 8 + groups * SCALE_BYTES)
    return rows * width * DENSE_BITS[value.dtype] // 8


def visible_keys(attention: Attention, steps: Steps) -> tuple[int, int]:
    """(keys that are read, pairs of a row and a key it sees), of all sequences."""
    each, window = steps.rows // steps.sequences, attention.window
    seen = [min(steps.context + row + 1, window or steps.context + row + 1) for row in range(each)]
    last = steps.context + each
    oldest = 0 if window is None else max(steps.context + 1 - window, 0)
    return steps.sequences * (last - oldest), steps.sequences * sum(seen)


def work(op: Op, program: Program, steps: Steps, weight_bytes: Callable[[str], int]) -> Work:
    """Of ``op`` in a program whose numerics are chosen; ``weight_bytes`` by the weight's name."""
    values = declarations(program)
    weights = {weight.name: weight for weight in program.weights}
    states = {state.name: state for state in program.states}
    symbols = steps.limits().symbols() | {"tokens": steps.rows, "outputs": steps.rows}
    cold = macs = 0
    operands = [values[name] for name in (*op.inputs, *op.outputs)]
    warm = sum(value_bytes(value, symbols) for value in operands if value.dtype != "int32")
    element = None
    read: set[str] = set()
    for one in op.expansion or (op,):
        if one.kind == "embed":
            table = weights[one.weights[0]]
            cold += steps.rows * weight_bytes(table.name) // table.shape[0]
        else:
            cold += sum(weight_bytes(name) for name in one.weights if name not in read)
        read.update(one.weights)
        if one.kind in ("linear", "logits"):
            macs += steps.rows * prod(weights[one.weights[0]].shape)
            dtype = values[one.inputs[0]].dtype
            element = dtype.element if isinstance(dtype, Scheme) else dtype
        elif one.kind == "kv_write":
            cold += steps.rows * states[one.states[0]].bytes_per_token
        elif isinstance(one.attributes, Attention):
            state = states[one.states[0]]
            keys, pairs = visible_keys(one.attributes, steps)
            cold += keys * state.bytes_per_token
            macs += pairs * one.attributes.heads * (state.head_size + state.value_head_size)
            element = one.attributes.arithmetic
    return Work(cold, warm, macs, element)
