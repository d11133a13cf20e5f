# SPDX-License-Identifier: Apache-2.0
"""What a program tells of its rows: logits, hidden states, and where those are: what its head multiplies, before it is
rounded for that."""

from linnet.errors import ConfigError
from linnet.program.attributes import Attention
from linnet.program.program import Program
from linnet.program.traverse import plain_ops

LOGITS = "logits"


def makes_logits(program: Program) -> bool:
    """Whether it has a head."""
    return LOGITS in program.outputs


def reads_whole_sequences(program: Program) -> bool:
    """Whether a row sees keys behind its own, so that all rows of a sequence must be in one step."""
    return any(isinstance(op.attributes, Attention) and op.attributes.full for op in plain_ops(program))


def vocabulary_of(program: Program) -> int:
    """How many token ids there are: rows of the embedding, or, where nothing is embedded, the width of what is told."""
    weights = {weight.name: weight for weight in program.weights}
    rows = [weights[op.weights[0]].shape[0] for op in plain_ops(program) if op.inputs == ("token_ids",)]
    if rows:
        return min(rows)
    for value in program.values:
        if value.name == program.outputs[0] and isinstance(value.shape[-1], int):
            return value.shape[-1]
    raise ConfigError("the program declares no output with a fixed vocabulary")


def hidden_value(program: Program) -> str | None:
    """The value that holds the last norm of the output rows, fp32 [outputs, width]; None where there is no such norm.

    Of a program as it was built or as its numerics were chosen, before it is fused.
    """
    if not makes_logits(program):
        return program.outputs[0]
    gathers = [index for index, op in enumerate(program.ops) if op.kind == "gather"]
    if not gathers:
        return None
    norms = [op.outputs[0] for op in program.ops[gathers[-1] :] if op.kind == "norm"]
    return norms[-1] if norms else None
