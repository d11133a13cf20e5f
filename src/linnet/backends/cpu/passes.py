# SPDX-License-Identifier: Apache-2.0
"""The backend's own passes on a Program whose numerics are chosen."""

from collections.abc import Set

from linnet.program.attributes import Dequantise
from linnet.program.convert_inputs import Conversion, convert_inputs
from linnet.program.program import Op, Program, Value


def widen_inputs(program: Program, refused: Set[str]) -> Program:
    """Put a dequantise in front of the linears named in ``refused``: their weight has no integer kernel for this input.

    The rounding the policy asked for still happens; only the arithmetic becomes fp32. Consumers share one op.
    """
    if not refused:
        return program

    def widening(op: Op, source: Value) -> Conversion | None:
        if op.name not in refused:
            return None
        return Conversion(Value(f"{source.name}.fp32", source.shape, "fp32"), "dequantise", Dequantise())

    return convert_inputs(program, widening)
