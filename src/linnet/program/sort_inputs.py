# SPDX-License-Identifier: Apache-2.0
"""sort_inputs: where a weight's columns lie sorted by group (activation order), its input is put into that order first.

A group's columns then lie together, so that every kernel for groups serves, and the product is the same: it only adds
in another order.
"""

from dataclasses import replace

from linnet.errors import UnsupportedError
from linnet.program.attributes import OrderColumns
from linnet.program.convert_inputs import Conversion, convert_inputs
from linnet.program.prescribed import COLUMN_ORDER
from linnet.program.program import Op, Program, Value, Weight, WeightRef
from linnet.program.traverse import multiplied
from linnet.schemes.scheme import LinearScheme

PROJECTIONS = ("linear", "logits", "experts")


def sort_inputs(program: Program) -> Program:
    """The program with an ``order_columns`` in front of every projection whose weight has sorted columns."""
    weights = {weight.name: weight for weight in program.weights}
    ordered: dict[str, Weight] = {}

    def order(op: Op, source: Value) -> Conversion | None:
        weight = weights[op.weights[0]] if op.kind in PROJECTIONS else None
        if op.kind == "experts":
            _refuse_sorted(op, weights)
            return None
        if weight is None or not isinstance(weight.dtype, LinearScheme) or not weight.dtype.sorted_columns:
            return None
        ref = replace(weight.ref, as_stored=True)
        ordered[weight.name] = replace(weight, ref=ref, dtype=replace(weight.dtype, sorted_columns=False))
        module = weight.ref.checkpoint_name.removesuffix(".weight")
        place = WeightRef(f"{module}.{COLUMN_ORDER}")
        columns = Weight(f"{weight.name}.{COLUMN_ORDER}", place, weight.shape[1:], "int32")
        value = Value(f"{source.name}.{weight.name}.ordered", source.shape, source.dtype)
        return Conversion(value, "order_columns", OrderColumns(), (columns,))

    changed = convert_inputs(program, order)
    return replace(changed, weights=tuple(ordered.get(weight.name, weight) for weight in changed.weights))


def _refuse_sorted(op: Op, weights: dict[str, Weight]) -> None:
    """UnsupportedError where an expert wants its input in an order of its own: all experts read one value."""
    for name in multiplied(op):
        weight = weights[name]
        if isinstance(weight.dtype, LinearScheme) and weight.dtype.sorted_columns:
            raise UnsupportedError(
                f"weight {weight.ref.checkpoint_name} has columns in activation order, which only dense layers can read"
            )
