# SPDX-License-Identifier: Apache-2.0
"""Where a program's final hidden states are: what its head multiplies, before it is rounded for that."""

from linnet.program.program import Program


def hidden_value(program: Program) -> str | None:
    """The value that holds the last norm of the output rows, fp32 [outputs, width]; None where there is no such norm.

    Of a program as it was built or as its numerics were chosen, before it is fused.
    """
    gathers = [index for index, op in enumerate(program.ops) if op.kind == "gather"]
    if not gathers:
        return None
    norms = [op.outputs[0] for op in program.ops[gathers[-1] :] if op.kind == "norm"]
    return norms[-1] if norms else None
