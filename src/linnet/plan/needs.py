# SPDX-License-Identifier: Apache-2.0
"""What a step of a model must have room for: said once, for who loads a model and for who foretells what it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from linnet.backends.interface import Limits
from linnet.plan.ledger import output_rows
from linnet.program.hidden import hidden_value, reads_whole_sequences
from linnet.program.program import Program


@dataclass(frozen=True)
class StepNeeds:
    """limits: of a step. hidden: the value that embeddings are made of, None: there is none. kept: the values that must
    be there after a step, that one among them."""

    limits: Limits
    hidden: str | None
    kept: tuple[str, ...]


def least_step_tokens(program: Program, longest: int) -> int:
    """Tokens that a step must have room for: a prompt of the ``longest`` length where tokens see those behind them."""
    return longest if reads_whole_sequences(program) else 1


def step_needs(
    program: Program,
    *,
    output_width: int,
    max_tokens: int,
    max_sequences: int,
    block_size: int,
    positions: int,
    keep: Sequence[str] = (),
) -> StepNeeds:
    """Of a program whose numerics are chosen, for so many tokens and sequences of a step.

    output_width: of a row of its output. positions: of the longest sequence. keep: values that somebody reads.
    """
    rows = output_rows(output_width, max_tokens, max_sequences)
    if reads_whole_sequences(program):  # a row of hidden states for every token
        rows = max(max_tokens, max_sequences)
    limits = Limits(max_tokens, max_sequences, rows, block_size, -(-positions // block_size))
    hidden = hidden_value(program)
    return StepNeeds(limits, hidden, tuple(dict.fromkeys([*keep, *([] if hidden is None else [hidden])])))
