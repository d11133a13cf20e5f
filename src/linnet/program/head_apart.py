# SPDX-License-Identifier: Apache-2.0
"""head_apart: who only asks for hidden states does not pay for the head.

Of the output rows those whose logits are wanted come first. Where the value before the head is kept, the head runs on
them alone; a row's numbers do not depend on the rows beside it, so no bit changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from linnet.program.attributes import Leading
from linnet.program.hidden import hidden_value, makes_logits
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations, rebuilt


def head_apart(program: Program, keep: Iterable[str] = ()) -> Program:
    """The program with all that follows a kept hidden value done for ``logit_rows``; runs before ``fuse``.

    Unchanged where that value is not kept, or where there is no head.
    """
    hidden = hidden_value(program)
    if hidden is None or hidden not in set(keep) or not makes_logits(program):
        return program
    taken = f"{hidden}.leading"
    after = next(index for index, op in enumerate(program.ops) if hidden in op.outputs) + 1
    behind = {name for op in program.ops[after:] for name in op.outputs}
    declared = declarations(program)
    if behind & set(keep):  # who looks at them wants all rows
        return program

    def through(ops: Sequence[Op]) -> list[Op]:
        found: list[Op] = []
        for op in ops:
            if not set(op.outputs) <= behind:
                found.append(op)
                if hidden in op.outputs:
                    found.append(Op("leading", taken, (hidden,), (taken,), Leading()))
                continue
            found.append(replace(op, inputs=tuple(taken if name == hidden else name for name in op.inputs)))
        return found

    changed = rebuilt(program, through)
    width = declared[hidden].shape[1:]
    values = [
        replace(value, shape=("logit_rows", *value.shape[1:])) if value.name in behind else value
        for value in program.values
    ]
    return replace(changed, values=(*values, Value(taken, ("logit_rows", *width), "fp32")))
